"""What a model can do. Front doors ask for abilities, never for a class or a family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, get_args

from openblip.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from openblip.checkpoints.model_parts import ModelParts
    from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageInput
    from openblip.matching.judge import Judge
    from openblip.matching.matcher import Matcher
    from openblip.models.writer import Writer
    from openblip.results import Answered, Captioned, Embedded, Judged, Matched

Ability: TypeAlias = Literal["caption", "ask", "chat", "match", "embed", "classify", "judge"]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
"""All there are, in the order in which they are shown."""

LACKS: dict[Ability, str] = {
    "caption": "has no language model to caption with",
    "ask": "has no language model to answer with",
    "chat": "holds no conversation",
    "match": "has no text side to match with",
    "embed": "has no text side to embed with",
    "classify": "does not compare images with the names of classes",
    "judge": "has no head to judge statements with",
}


@dataclass(frozen=True, eq=False)
class Components:
    """What a family makes of its network, for `openblip.models.model.Model` to offer.

    Attributes:
        encoder: of images; everything else takes what it gives.
        writer: captions and answers; None for a model without a language model.
        matcher: compares images and texts; None for a model without a text side.
        abilities: what of it users are offered.
        judge: says of which class a statement about images is; None for a model without such a head.
    """

    encoder: CachedEncoder
    writer: Writer | None
    matcher: Matcher | None
    abilities: tuple[Ability, ...]
    judge: Judge | None = None


class HasAbilities(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def abilities(self) -> tuple[Ability, ...]: ...


class Composed(HasAbilities, Protocol):
    """What the methods of `openblip.Model` ask of it."""

    parts: ModelParts
    components: Components

    def encode_image(self, image: ImageInput) -> EncodedImage: ...


class Captioner(Protocol):
    """Describes images."""

    def caption_many(self, images: Iterable[Any]) -> Iterator[Captioned]: ...


class Answerer(Protocol):
    """Answers questions about images."""

    def ask_many(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Answered]: ...


class Matching(Protocol):
    """Says how well texts fit images."""

    def match_many(self, images: Iterable[Any], texts: Any) -> Iterator[Matched]: ...


class Embedder(Protocol):
    """Images and texts as vectors."""

    def embed_images_many(self, images: Iterable[Any]) -> Iterator[Embedded]: ...
    def embed_texts(self, texts: Any) -> Tensor: ...


class Classifier(Protocol):
    """Chooses among the names of classes."""

    def classify(self, images: Any, labels: Iterable[str]) -> Any: ...


class Judging(Protocol):
    """Says of which class a statement about an image, or about two, is."""

    def judge_many(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Judged]: ...


def require(model: HasAbilities, ability: Ability) -> None:
    """Raises CheckpointError, which says what the model can do instead, when it lacks an ability."""
    if ability not in model.abilities:
        can = ", ".join(model.abilities)
        raise CheckpointError(f"the model {model.name} {LACKS[ability]}: it can {can}")


def writer_of(model: Composed, ability: Ability) -> Writer:
    """What generates the text of a model. Raises CheckpointError when the model lacks the ability."""
    require(model, ability)
    return cast("Writer", model.components.writer)


def matcher_of(model: Composed, ability: Ability) -> Matcher:
    """What compares images and texts for a model. Raises CheckpointError when the model lacks the ability."""
    require(model, ability)
    return cast("Matcher", model.components.matcher)


def judge_of(model: Composed) -> Judge:
    """What judges statements for a model. Raises CheckpointError when it lacks the ability."""
    require(model, "judge")
    return cast("Judge", model.components.judge)
