"""BLIP: a ViT, and BERTs that read its patches (Li et al. 2022, https://arxiv.org/abs/2201.12086).

A text encoder reads texts alone (ITC) or with an image (ITM, NLVR, questions); a text decoder writes captions from an
image's patches, or answers from the states of a question that was read with an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.bert import Bert, BertConfig, ImageMemory
from openblip.nn.bert_decoder import BertDecoder
from openblip.nn.config_checks import check_settings
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.language_model import join_texts
from openblip.nn.quant.linear import Linear
from openblip.nn.slots import MemorySlots, SlotCache, SlotMemory
from openblip.nn.vit import VitConfig

DECODE_ID, ENCODE_ID = 30522, 30523
"""[DEC] and [ENC], which BLIP adds behind BERT's 30,522 words."""


LABEL_SMOOTHING = 0.1
"""Of every loss over words in LAVIS, also where answers are ranked."""


MERGE_STD = 0.02
"""Of a new layer that merges what a text reads of two images, as of BERT's other layers."""
PAIR = re.compile(r"\.cross_attention\.(?:first|second)\.(query|key|value|out)(?=\.)")


@dataclass(frozen=True)
class BlipLanguageConfig:
    """What others have to know of how a BLIP writes; see `openblip.nn.language_model.LanguageConfig`."""

    vocab_size: int
    token_width: int
    max_positions: int
    encodes_prompts: bool
    prompt_start_ids: tuple[int, ...]
    start_ids: tuple[int, ...]
    prompt_counts: bool
    kind: ClassVar[str] = "bert"
    is_external: ClassVar[bool] = False
    label_smoothing: ClassVar[float] = LABEL_SMOOTHING


@dataclass(frozen=True)
class BlipConfig:
    """What one BLIP consists of.

    Attributes:
        vision: the image encoder, whose last LayerNorm is its own.
        encoder: of texts; None for a model that writes captions alone.
        decoder: None for a model that does not write. It reads an image's patches, or the states of a question that
            the encoder has read with the image: its `image_width` says which.
        shared_width: width of the space that images and texts share (ITC); None without one.
        itm: whether there is a head that says if a text and an image belong together.
        num_classes: of the head that classifies a text with its image or images; None without one.
        answers: the decoder answers questions; otherwise it goes on from the prompt of a caption.
        shares_text: the decoder has the weights of the encoder, apart from self-attention and its head (pre-training).
        decode_id, encode_id: what a text of the decoder, and a text that is read with an image, begin with.
        prompt_counts: see `openblip.nn.language_model.LanguageConfig`.
    """

    vision: VitConfig
    encoder: BertConfig | None = None
    decoder: BertConfig | None = None
    shared_width: int | None = None
    itm: bool = False
    num_classes: int | None = None
    answers: bool = False
    shares_text: bool = False
    decode_id: int = DECODE_ID
    encode_id: int = ENCODE_ID
    prompt_counts: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        width = self.vision.width
        if self.encoder is None and (self.shared_width or self.itm or self.num_classes or self.answers):
            raise ValueError("a BLIP without a text encoder writes captions and nothing else")
        if self.answers and self.decoder is None:
            raise ValueError("a BLIP that answers needs a decoder")
        if self.encoder is not None and self.encoder.image_width != width:
            raise ValueError(
                f"the text encoder reads {self.encoder.image_width} channels, the image encoder has {width}"
            )
        if self.shares_text and (self.decoder is None or self.decoder != self.encoder or self.answers):
            raise ValueError("a BLIP whose encoder and decoder share weights captions, and both have the same sizes")
        read = self.encoder.width if self.encoder is not None and self.answers else width
        if self.decoder is not None and self.decoder.image_width != read:
            raise ValueError(f"the decoder reads {self.decoder.image_width} channels, what it reads has {read}")
        for name in ("decode_id", "encode_id"):
            for bert in (self.encoder, self.decoder):
                if bert is not None and getattr(self, name) >= bert.vocab_size:
                    raise ValueError(f"{name} is {getattr(self, name)}, beyond the {bert.vocab_size} words")

    @property
    def language(self) -> BlipLanguageConfig | None:
        """How it writes; None if it does not."""
        if self.decoder is None:
            return None
        reads = self.encoder if self.encoder is not None and self.answers else self.decoder
        return BlipLanguageConfig(
            vocab_size=self.decoder.vocab_size,
            token_width=reads.width,
            max_positions=min(reads.max_positions, self.decoder.max_positions),
            encodes_prompts=self.answers,
            prompt_start_ids=(self.encode_id,) if self.answers else (),
            start_ids=(self.decode_id,) if self.answers else (),
            prompt_counts=self.prompt_counts,
        )

    @property
    def text_vocab_size(self) -> int:
        """Ids that the text encoder reads; 0 without one."""
        return 0 if self.encoder is None else self.encoder.vocab_size

    @property
    def text_positions(self) -> int:
        """Tokens of the longest text that the text encoder reads."""
        return 0 if self.encoder is None else self.encoder.max_positions


class ClassHead(nn.Module):
    """Two layers on the first token of a text that was read with its image or images."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.fc2(F.relu(self.fc1(hidden)))
        return logits


class BlipNetwork(nn.Module):
    """The parts and how tensors pass between them; objectives and generation are built on top.

    It has `encoder`, `decoder`, `image_projection`, `text_projection`, `temperature`, `itm_head` and `class_head` where
    its config says so.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        if config.encoder is not None:
            width = config.encoder.width
            self.encoder = Bert(config.encoder)
            if config.shared_width is not None:
                self.image_projection = nn.Linear(config.vision.width, config.shared_width)
                self.text_projection = nn.Linear(width, config.shared_width)
                self.temperature = nn.Parameter(torch.tensor(0.07))
            if config.itm:
                self.itm_head = nn.Linear(width, 2)
            if config.num_classes is not None:
                self.class_head = ClassHead(width, config.num_classes)
        if config.decoder is not None:
            self.decoder = BertDecoder(config.decoder, self.encoder if config.shares_text else None)

    def with_class_head(self, classes: int, images: int) -> BlipNetwork:
        """See `with_class_head`."""
        return with_class_head(self, classes, images)

    @property
    def language_model(self) -> BlipLanguageModel:
        """Its encoder and decoder, as generation takes them. It has one if its config has a `language`."""
        return BlipLanguageModel(self)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to patches [B, N, image width], the class token's vector first."""
        features: Tensor = self.vision(pixels)
        return features

    def project_images(self, features: Tensor) -> Tensor:
        """Vectors of the image encoder [..., image width] to unit vectors [..., shared width] (ITC: of the first)."""
        return F.normalize(self.image_projection(features), dim=-1)

    def project_texts(self, hidden: Tensor) -> Tensor:
        """States of texts read alone [..., width] to unit vectors [..., shared width] (ITC: of the first)."""
        return F.normalize(self.text_projection(hidden), dim=-1)

    def read_together(
        self, ids: Tensor, mask: Tensor | None, image: Tensor | ImageMemory, queries: int | None = None
    ) -> Tensor:
        """Texts read with their images: [B, L, width].

        Args:
            ids: [B, L]; [ENC] takes the place of the first, [CLS].
            mask: [B, L], False or 0 for padding.
            image: features [I, N, image width], or what `encoder.remember` made of them; see `Bert.forward`, also for
                `queries`.
        """
        memory = image if isinstance(image, ImageMemory) else self.encoder.remember(image)
        states: Tensor = self.encoder(self.begin_with_encode(ids), mask, memory, queries=queries)
        return states

    def embed_texts(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Texts read alone [B, L] (mask [B, L]), by their first token, to unit vectors [B, shared width] (ITC)."""
        return self.project_texts(self.encoder(ids, mask, queries=1)[:, 0])

    def begin_with_encode(self, ids: Tensor) -> Tensor:
        """The same texts [B, L] with [ENC] in the place of their first token."""
        start = torch.full_like(ids[:, :1], self.config.encode_id)
        return torch.cat([start, ids[:, 1:]], dim=1)

    def itm_logits(self, ids: Tensor, mask: Tensor | None, image: Tensor | ImageMemory) -> Tensor:
        """Whether text and image belong together: [B, 2]; index 1 is yes. See `read_together`."""
        logits: Tensor = self.itm_head(self.read_together(ids, mask, image, queries=1)[:, 0])
        return logits

    def class_logits(self, ids: Tensor, mask: Tensor | None, *features: Tensor) -> Tensor:
        """Classes of texts with one image each, or with two (NLVR): [B, classes].

        Args:
            ids: [B, L]. A text with two images begins with [ENC], whatever its first id is; with one it begins with
                the id that is given, [CLS] in LAVIS.
            features: [I, N, image width] of the first images, and of the second. Texts may outnumber images, see
                `Bert.forward`.
        """
        if len(features) == 2:
            states = self.encoder(self.begin_with_encode(ids), mask, *self.encoder.remember_pair(*features), queries=1)
        else:
            states = self.encoder(ids, mask, self.encoder.remember(*features), queries=1)
        logits: Tensor = self.class_head(states[:, 0])
        return logits


def with_class_head(network: BlipNetwork, classes: int, images: int) -> BlipNetwork:
    """A BLIP that puts texts into classes, to be trained, with copies of the weights of one that reads images.

    Where it is to read two images and `network` reads one, both get the attention to that one; the layers that merge
    them are new, and so is the head, unless `network` has one for as many classes. What it has no use for is left out.

    Args:
        images: that a text is read with, 1 or 2.

    Raises:
        ValueError: `network` has no text encoder that reads images, or one that reads more of them.
    """
    old = network.config
    if old.encoder is None:
        raise ValueError("it has no text encoder that reads images")
    if old.encoder.images > images:
        raise ValueError(f"it reads {old.encoder.images} images with a text, not {images}")
    encoder = replace(old.encoder, images=images)
    config = BlipConfig(old.vision, encoder, num_classes=classes, decode_id=old.decode_id, encode_id=old.encode_id)
    made = BlipNetwork(config)
    for name, module in made.named_modules():
        if name.endswith(".merge") and isinstance(module, Linear):
            nn.init.normal_(module.weight, std=MERGE_STD)
            nn.init.zeros_(module.bias)
    wanted, state = made.state_dict(), network.state_dict()
    for name in wanted:
        one = PAIR.sub(r".cross_attention.\1", name)
        found = state.get(name, state.get(one))
        if found is not None and not (name.startswith("class_head.") and old.num_classes != classes):
            wanted[name] = found.clone()
    made.load_state_dict(wanted)
    return made.to(dtype=network.vision.class_token.dtype, device=network.vision.class_token.device)


class BlipLanguageModel:
    """How a BLIP writes about images: see `openblip.nn.language_model.LanguageModel`, and `remember` for the images."""

    def __init__(self, network: BlipNetwork) -> None:
        language = network.config.language
        if language is None:
            raise AttributeError("this BLIP has no decoder")
        self.network = network
        self.config = language
        self.decoder = network.decoder

    @property
    def reader(self) -> Bert:
        """What reads images, and the words of prompts."""
        return self.network.encoder if self.config.encodes_prompts else self.decoder

    def embed(self, ids: Tensor) -> Tensor:
        return self.reader.embed(ids)

    def remember(self, features: Tensor) -> ImageMemory:
        """Image features [I, N, image width] to what `read` reads of them."""
        return self.reader.remember(features)

    def read_prefix(self, embeds: Tensor) -> None:
        """Images stand beside a prompt, not in front of it."""
        return None

    def new_slots(self, texts: int) -> MemorySlots[ImageMemory]:
        """See `LanguageModel.new_slots`."""
        cache = SlotCache(self.decoder.new_cache(0, 0), texts)
        return MemorySlots(BlipReading(self.decoder, ImageMemory((), ()), cache), cache, SlotMemory(ImageMemory))

    def read(
        self,
        prompts: Tensor,
        mask: Tensor | None,
        new_tokens: int,
        texts: int = 1,
        memory: ImageMemory | None = None,
    ) -> tuple[BlipReading, Tensor]:
        """See `LanguageModel.read`.

        Args:
            memory: of one image a prompt, or of one for several prompts that follow one another.

        Raises:
            ValueError: no memory is given, or prompts and new tokens exceed the position table.
        """
        if self.config.encodes_prompts:
            memory, mask = self.answer_memory(prompts, mask, self._given(memory)), None
            start = torch.full((len(prompts), 1), self.network.config.decode_id, device=prompts.device)
            prompts = self.decoder.embed(start)
        cache = self.decoder.new_cache(len(prompts), prompts.shape[1] + texts * new_tokens)
        hidden = self.decoder.decode(prompts, mask, self._given(memory), cache)
        return BlipReading(self.decoder, self._given(memory), cache), self.logits(hidden[:, -1]).float()

    def answer_memory(self, prompts: Tensor, mask: Tensor | None, memory: ImageMemory) -> ImageMemory:
        """Questions [B, L, width] (mask [B, L]) read with their images, as the decoder reads them."""
        states = self.network.encoder.encode(prompts, mask, memory)
        return self.decoder.remember(states, mask)

    def hidden_before(
        self, prompts: Tensor, mask: Tensor | None, labels: Tensor, memory: ImageMemory | None = None
    ) -> Tensor:
        """See `LanguageModel.hidden_before`; memory as `read` takes it."""
        if not self.config.encodes_prompts:
            before = labels[:, :-1]
            text = self.embed(before.clamp(min=0)).to(prompts)
            embeds, joint_mask, places = join_texts(prompts, mask, text, before >= 0)
            hidden = self.decoder.decode(embeds, joint_mask, self._given(memory))
            return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return self.hidden_of_answers(labels, self.answer_memory(prompts, mask, self._given(memory)))

    def hidden_of_answers(self, labels: Tensor, memory: ImageMemory) -> Tensor:
        """States [B, L, width] that predict each label of answers [B, L]; negative labels stand behind a text.

        Args:
            memory: of questions (`answer_memory`): one an answer, or one for several answers that follow one another.
        """
        before = F.pad(labels[:, :-1], (1, 0), value=self.network.config.decode_id).clamp(min=0)
        return self.decoder.decode(self.decoder.embed(before), None, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)

    @staticmethod
    def _given(memory: ImageMemory | None) -> ImageMemory:
        if memory is None:
            raise ValueError("a BLIP writes about an image: give what `remember` made of its features")
        return memory


class BlipReading:
    """Prompts and their texts in the decoder's cache, beside their images or encoded questions."""

    def __init__(self, decoder: BertDecoder, memory: ImageMemory, cache: KeyValueCache) -> None:
        self.decoder = decoder
        self.memory = memory
        self.cache = cache

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        hidden = self.decoder.decode_step(self.decoder.embed(tokens), self.memory, self.cache, parents)
        return self.decoder.logits(hidden).float()

    def take_prompts(self, rows: Tensor) -> None:
        images = self.memory.batch
        if images > 1:  # a lone one is read by all who are left
            prompts = self.cache.batch
            places = torch.arange(images, device=rows.device).repeat_interleave(prompts // images)
            self.memory = self.memory.take(places[rows])
        self.cache.take_rows(rows)
