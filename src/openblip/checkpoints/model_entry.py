"""What is known of a model that has a name, without reading any of its files. Importing this loads no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openblip.checkpoints.hub.sources import Place, Source, find_all
from openblip.errors import CheckpointError

if TYPE_CHECKING:
    from openblip.checkpoints.model_parts import GenerationDefaults
    from openblip.text import PromptTemplates

VISION = "image encoder"
QFORMER = "Q-Former"
TEXT = "text side"
PROJECTION = "projection"
LANGUAGE = "language model"
PARTS = (VISION, QFORMER, TEXT, PROJECTION, LANGUAGE)
"""What a BLIP-2 consists of. The text side includes ITC and ITM; the projection leads to the language model."""


@dataclass(frozen=True)
class ImageEncoder:
    """A Vision Transformer, as far as its cost depends on its sizes.

    Attributes:
        name: of its own file of weights, without the ending.
        licence: of its weights.
    """

    name: str
    title: str
    licence: str
    width: int
    depth: int
    mlp_width: int
    patch_size: int = 14

    def tokens(self, image_size: int) -> int:
        """Patches of a square image, and the class token."""
        return (image_size // self.patch_size) ** 2 + 1

    @property
    def matrix_params(self) -> int:
        """Weights of its blocks' linear layers, which int8 and int4 quantize."""
        return self.depth * (4 * self.width**2 + 2 * self.width * self.mlp_width)


@dataclass(frozen=True)
class LanguageModel:
    """A language model, as far as its cost depends on its sizes.

    Attributes:
        repository: its own one on the hub, which LAVIS takes the frozen weights from.
        licence: of its weights.
        stored_bytes: of one weight there.
        kind: of the network's config.
        depth: layers; of an encoder-decoder in each of the two.
        params: weights; of them `table_params` in tables of words and positions, the output head included.
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
    head_width: int
    ffn_width: int
    params: int
    table_params: int

    @property
    def encodes_prompts(self) -> bool:
        """Whether an encoder of as many layers reads the prompt, as in T5; otherwise the text goes on where it ends."""
        return self.kind == "t5"

    @property
    def matrix_params(self) -> int:
        """Weights of its layers' matrices, which int8 and int4 quantize; tables of words are apart."""
        attention, ffn = 4 * self.width * self.num_heads * self.head_width, self.width * self.ffn_width
        if self.kind == "t5":  # an encoder layer, and a decoder layer that attends twice; gated feed-forward networks
            return self.depth * (3 * attention + 6 * ffn)
        return self.depth * (attention + 2 * ffn)

    @property
    def word_params(self) -> int:
        """Weights of tables of words, output head included, which int8 and int4 hold in 8 bits."""
        return self.vocab_size * self.width * (2 if self.kind == "t5" else 1)

    def cache_elements(self, prompt: int, new: int) -> int:
        """Keys and values of one text: `prompt` tokens read and `new` ones written."""
        return 2 * self.depth * self.num_heads * self.head_width * (prompt + new)


@dataclass(frozen=True)
class ModelEntry:
    """A model that `openblip.load` knows by name.

    Attributes:
        name: the one that is shown; `aliases` mean the same.
        family: of models that are built alike.
        summary: what it is made of and was trained on, in one line.
        origin: whose layout its files have.
        abilities: what it can do: "caption", "ask", "chat", "match", "embed", "classify", "judge".
        image_size: side of the square images, in pixels.
        params: weights of each of its parts, each counted once however often a file repeats it.
        int8_params: weights that int8 holds in 8 bits: large matrices, and tables of words; None for all.
        int4_params: those of them that int4 holds in 4 bits.
        licence: of each part; `terms` in short: all of them hold for the model as a whole.
        files: what it is read from; a part is in exactly one of them, or in none of a model that nobody has published
            weights of. None of a model that lies in a `folder`.
        folder: where it lies on this machine, when it is not downloaded.
        prompts: what it reads around a user's words, by field of `PromptTemplates`; what is left out is usual.
        generation: how it writes where the user says nothing, as the section "generation" of our config.json.
        vision, language: what memory and time of it are estimated by; None where they are not.
        build_config: makes the network's sizes; None where the files alone tell them.
    """

    name: str
    family: str
    summary: str
    origin: Literal["openblip", "lavis", "transformers"]
    abilities: tuple[str, ...]
    image_size: int
    params: Mapping[str, int] = field(hash=False)
    licence: str
    terms: str
    aliases: tuple[str, ...] = ()
    files: tuple[Source, ...] = ()
    folder: Path | None = None
    int8_params: int | None = None
    int4_params: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    generation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    vision: ImageEncoder | None = None
    language: LanguageModel | None = None
    build_config: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(self.params.values())

    @property
    def size(self) -> int:
        """Size of its files in bytes; to about one percent where they are downloaded."""
        if self.folder is None:
            return sum(file.size for file in self.files)
        return sum(file.stat().st_size for file in self.folder.glob("*") if file.is_file())

    @property
    def megabytes(self) -> float:
        """Its files, in 10^6 bytes."""
        return round(self.size / 1e6, 1)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights of it to be read; otherwise they are trained first."""
        return self.folder is not None or any(file.supplies for file in self.files)

    @property
    def cached(self) -> bool:
        """Whether all its files are on this machine."""
        if self.folder is not None:
            return self.folder.is_dir()
        return find_all([Place(file) for file in self.files]) is not None

    def config(self) -> Any:
        """The network's sizes. A hub folder's own config.json may differ in the rows of its word table.

        Raises:
            CheckpointError: its files alone tell them.
        """
        if self.build_config is None:
            raise CheckpointError(f"the sizes of the network of {self.name} are in its config.json: load the model")
        return self.build_config()

    def templates(self) -> PromptTemplates:
        """Its prompts."""
        from openblip.text import PromptTemplates

        return PromptTemplates(**self.prompts)

    def defaults(self) -> GenerationDefaults:
        """How it writes where the user says nothing."""
        from openblip.checkpoints.model_parts import read_defaults

        return read_defaults(self.generation, Path(self.name))
