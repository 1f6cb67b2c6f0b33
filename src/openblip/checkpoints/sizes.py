"""How large the parts of official models are, known without building them: importing this loads no PyTorch.

A network of billions of weights takes seconds to lay out even without memory for them, and a table of models should
not. Each part's formula is checked against the network itself in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from openblip.nn.opt import OptConfig
    from openblip.nn.qformer import QFormerConfig
    from openblip.nn.t5 import T5Config
    from openblip.nn.vit import VitConfig

PATCH = 14
QUERIES = 32
QFORMER_WIDTH = 768
QFORMER_DEPTH = 12
CROSS_LAYERS = 6
QFORMER_FFN = 3072
WORDS = 30_523
WORD_POSITIONS = 512
SHARED_WIDTH = 256
RELATIVE_BUCKETS = 32
OPT_POSITIONS = 2050


@dataclass(frozen=True)
class ImageEncoder:
    """A Vision Transformer as BLIP-2 uses it, without its last block.

    Attributes:
        name: "eva_vit_g" or "clip_vit_L", as LAVIS calls their files.
        licence: of its weights.
    """

    name: Literal["eva_vit_g", "clip_vit_L"]
    title: str
    licence: str
    width: int
    depth: int
    mlp_width: int

    def parameters(self, image_size: int) -> int:
        """All weights, and those of the LayerNorm behind it."""
        width = self.width
        positions = (image_size // PATCH) ** 2 + 1
        clip = self.name == "clip_vit_L"
        patches = 3 * PATCH**2 * width + (0 if clip else width)
        # EVA's keys have no bias; CLIP has a norm in front of the blocks.
        block = 4 * width * width + (4 if clip else 3) * width + _ffn(width, self.mlp_width) + 4 * width
        return patches + width + positions * width + (2 * width if clip else 0) + self.depth * block + 2 * width

    def config(self, image_size: int) -> VitConfig:
        from dataclasses import replace

        from openblip.nn.vit import CLIP_VIT_L, EVA_VIT_G

        return replace(CLIP_VIT_L if self.name == "clip_vit_L" else EVA_VIT_G, image_size=image_size)


@dataclass(frozen=True)
class LanguageModel:
    """OPT or FLAN-T5.

    Attributes:
        repository: its own one on the hub, which LAVIS takes the frozen weights from.
        licence: of its weights.
        stored_bytes: of one weight there.
        depth: layers; in FLAN-T5 of the encoder and of the decoder each.
    """

    title: str
    repository: str
    licence: str
    stored_bytes: int
    kind: Literal["opt", "t5"]
    vocab_size: int
    width: int
    depth: int
    num_heads: int
    ffn_width: int
    head_width: int = 64

    def parameters(self) -> int:
        width, table = self.width, self.vocab_size * self.width
        if self.kind == "opt":
            layer = 4 * (width * width + width) + _ffn(width, self.ffn_width) + 4 * width
            return table + OPT_POSITIONS * width + self.depth * layer + 2 * width
        attention = 4 * width * self.num_heads * self.head_width
        ffn = 3 * width * self.ffn_width
        encoder = self.depth * (attention + ffn + 2 * width) + width
        decoder = self.depth * (2 * attention + ffn + 3 * width) + width
        # The head is a table of its own; each stack has a table of relative positions.
        return 2 * table + encoder + decoder + 2 * RELATIVE_BUCKETS * self.num_heads

    def table_parameters(self) -> int:
        """Of them, those of words and positions, the output head included."""
        table = self.vocab_size * self.width
        return table + OPT_POSITIONS * self.width if self.kind == "opt" else 2 * table

    def config(self) -> OptConfig | T5Config:
        from openblip.nn.opt import OptConfig
        from openblip.nn.t5 import T5Config

        if self.kind == "opt":
            return OptConfig(self.vocab_size, self.width, self.depth, self.num_heads, self.ffn_width)
        return T5Config(
            vocab_size=self.vocab_size,
            width=self.width,
            depth=self.depth,
            decoder_depth=self.depth,
            num_heads=self.num_heads,
            head_width=self.head_width,
            ffn_width=self.ffn_width,
            activation="gelu",  # LAVIS', and so what the Q-Former was trained with
        )

    def cache_elements(self, prompt: int, new: int) -> int:
        """Keys and values of one text: `prompt` tokens read and `new` ones written."""
        inner = self.width if self.kind == "opt" else self.num_heads * self.head_width
        return 2 * self.depth * inner * (prompt + new)


def qformer_parameters(image_width: int) -> int:
    """The Q-Former's image side: queries, self- and cross-attention, the queries' feed-forward networks."""
    width = QFORMER_WIDTH
    self_attention = 4 * (width * width + width) + 2 * width
    cross_attention = 2 * (width * width + width) + 2 * (image_width * width + width) + 2 * width
    ffn = _ffn(width, QFORMER_FFN) + 2 * width
    return QUERIES * width + 2 * width + QFORMER_DEPTH * (self_attention + ffn) + CROSS_LAYERS * cross_attention


def text_side_parameters() -> int:
    """The Q-Former's text side with what compares texts and images: word table, feed-forward networks, ITC, ITM."""
    width = QFORMER_WIDTH
    tables = (WORDS + WORD_POSITIONS) * width
    contrast = 2 * (width * SHARED_WIDTH + SHARED_WIDTH) + 1
    matching = 2 * width + 2
    return tables + QFORMER_DEPTH * (_ffn(width, QFORMER_FFN) + 2 * width) + contrast + matching


def caption_head_parameters() -> int:
    """What the Q-Former writes text with in stage 1 (ITG), which transformers' folders leave out."""
    return QFORMER_WIDTH * QFORMER_WIDTH + 3 * QFORMER_WIDTH + WORDS


def projection_parameters(language_width: int) -> int:
    """From the queries to the language model's embeddings."""
    return QFORMER_WIDTH * language_width + language_width


def qformer_config(image_width: int, text_side: bool) -> QFormerConfig:
    from openblip.nn.qformer import QFormerConfig

    return QFormerConfig(image_width=image_width, vocab_size=WORDS if text_side else 0)


def _ffn(width: int, hidden: int) -> int:
    return 2 * width * hidden + hidden + width
