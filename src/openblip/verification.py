"""Whether official weights give, on this machine, what their authors published.

Needs the official weights, and a network unless they and the test images are already here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from openblip.checkpoints.registry import find_model
from openblip.errors import CheckpointError
from openblip.images.sources import ImageSource

if TYPE_CHECKING:
    from openblip.models.model import Model

IMAGES: Mapping[str, str] = {
    "merlion.png": "https://raw.githubusercontent.com/salesforce/LAVIS/main/docs/_static/merlion.png",
    "demo.jpg": "https://huggingface.co/hf-internal-testing/blip-test-image/resolve/main/demo.jpg",
}
"""The photos that LAVIS' and transformers' own tests look at."""

TOLERANCE = 0.005
"""Of probabilities and cosines: the published ones come from float16 or TF32 runs on other machines."""
LOSS_TOLERANCE = 0.1
"""A share of the loss, as in LAVIS' own test."""
MEAN_TOLERANCE = 0.02, 2e-5
"""Of means of features: a share of the mean, and what is added to that."""


@dataclass(frozen=True)
class PublishedText:
    """What a model wrote about an image.

    Attributes:
        prompt: what it was told to go on from; None for its own way to ask for a caption.
        num_beams, max_new_tokens, min_new_tokens: as in the run that was published.
    """

    image: str
    text: str
    prompt: str | None = None
    num_beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 1

    @property
    def task(self) -> str:
        return f"{self.image}, {'caption' if self.prompt is None else self.prompt}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        found = model.caption(
            image,
            prompt=self.prompt,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            length_penalty=1.0,
        )
        return Outcome(self.task, self.text, found, found == self.text)


@dataclass(frozen=True)
class PublishedAnswer:
    """What a model answered, with its own options."""

    image: str
    question: str
    text: str

    @property
    def task(self) -> str:
        return f"{self.image}, {self.question}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        found = model.ask(image, self.question)
        return Outcome(self.task, self.text, found, found == self.text)


@dataclass(frozen=True)
class PublishedMatch:
    """How well a text fitted an image: `itm` and `itc` as in `openblip.Match`; None where it was not published."""

    image: str
    text: str
    itm: float | None
    itc: float

    @property
    def task(self) -> str:
        return f"{self.image}, match with {self.text!r}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        found = model.match(image, self.text)
        near = abs(self.itc - found.itc) <= TOLERANCE
        if self.itm is not None:
            near = near and found.itm is not None and abs(self.itm - found.itm) <= TOLERANCE
        itm = None if self.itm is None else found.itm
        return Outcome(self.task, _shown(self.itm, self.itc), _shown(itm, found.itc), near)


@dataclass(frozen=True)
class PublishedChoice:
    """Which of some answers a model found likeliest."""

    image: str
    question: str
    answers: tuple[str, ...]
    text: str

    @property
    def task(self) -> str:
        return f"{self.image}, {self.question} ({', '.join(self.answers)})"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        found = model.rank_answers(image, self.question, self.answers)[0].answer
        return Outcome(self.task, self.text, found, found == self.text)


@dataclass(frozen=True)
class PublishedClasses:
    """How probable a model found some labels, each read alone, as it stands."""

    image: str
    probabilities: Mapping[str, float]

    @property
    def task(self) -> str:
        return f"{self.image}, classes {', '.join(self.probabilities)}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        found = {one.label: one.probability for one in model.classify(image, list(self.probabilities), templates="{}")}
        near = all(abs(found[label] - odds) <= TOLERANCE for label, odds in self.probabilities.items())
        expected, ours = (
            ", ".join(f"{odds[label]:.5f}" for label in self.probabilities) for odds in (self.probabilities, found)
        )
        return Outcome(self.task, expected, ours, near)


@dataclass(frozen=True)
class PublishedLoss:
    """What a BLIP would learn of a caption as it stands, without the prompt that LAVIS adds: the loss of LAVIS' test.

    The first tokens count nothing, whatever they are: as many as the prompt has.
    """

    image: str
    text: str
    loss: float

    @property
    def task(self) -> str:
        return f"{self.image}, loss of {self.text!r}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        import torch
        import torch.nn.functional as F

        parts, network = model.parts, cast(Any, model.network)
        decoder, smoothing = network.decoder, network.config.language.label_smoothing
        ids = torch.tensor([[*parts.prompt_ids(self.text), parts.stop_id]], device=model.device)
        skipped = len(parts.prompt_ids(parts.prompts.caption))
        with torch.inference_mode():
            memory = decoder.remember(model.encode_image(image).features[None])
            logits = decoder.logits(decoder.decode(decoder.embed(ids), None, memory))[0, skipped - 1 : -1]
            found = float(F.cross_entropy(logits.float(), ids[0, skipped:], label_smoothing=smoothing))
        near = abs(found - self.loss) <= LOSS_TOLERANCE * self.loss
        return Outcome(self.task, f"{self.loss:.4f}", f"{found:.4f}", near)


@dataclass(frozen=True)
class PublishedMean:
    """The mean of all numbers in the features of a BLIP: of an image, of a text, or of both together."""

    image: str
    text: str
    of: Literal["image", "image projected", "text", "text projected", "both"]
    mean: float

    @property
    def task(self) -> str:
        return f"{self.image} and {self.text!r}, mean of the features: {self.of}"

    def run(self, model: Model, image: ImageSource) -> Outcome:
        import torch

        network: Any = model.network
        with torch.inference_mode():
            found = float(self._features(network, model, image).float().mean())
        share, more = MEAN_TOLERANCE
        near = abs(found - self.mean) <= share * abs(self.mean) + more
        return Outcome(self.task, f"{self.mean:.6f}", f"{found:.6f}", near)

    def _features(self, network: Any, model: Model, image: ImageSource) -> Any:
        if self.of.startswith("image"):
            features = model.encode_image(image).features
            return features if self.of == "image" else network.project_images(features)
        words: Any = model.parts.matching
        ids, mask = (tensor.to(model.device) for tensor in words.batch([self.text]))
        if self.of == "both":
            return network.read_together(ids, mask, model.encode_image(image).features[None])
        hidden = network.encoder(ids, mask)
        return hidden if self.of == "text" else network.project_texts(hidden)


@dataclass(frozen=True)
class Outcome:
    """One published output beside what came out here."""

    task: str
    expected: str
    found: str
    same: bool


Published = (
    PublishedText
    | PublishedAnswer
    | PublishedChoice
    | PublishedMatch
    | PublishedClasses
    | PublishedLoss
    | PublishedMean
)

WHICH_CITY = "Question: which city is this? Answer:"
MERLION_TALK = (
    "Question: which city is this? Answer: singapore. Question: why? Answer: it has a statue of a merlion. "
    "Question: where is the name merlion coming from? Answer:"
)
STAGE_1_PRETRAINED = (PublishedMatch("merlion.png", "a large fountain spewing water into the air", None, 0.3642),)


def _caption(text: str) -> tuple[Published, ...]:
    return (PublishedText("merlion.png", text),)


def _blip_caption(text: str) -> tuple[Published, ...]:
    return (PublishedText("merlion.png", text, num_beams=3, max_new_tokens=26, min_new_tokens=6),)


FOUNTAIN = "a large fountain spewing water into the air"
STATUE = "a large statue of a person spraying water from a fountain"
LABELS = ("merlion", "sky", "giraffe", "fountain", "marina bay")


def _classes(*odds: float) -> PublishedClasses:
    return PublishedClasses("merlion.png", dict(zip(LABELS, odds, strict=True)))


CLIP_B_16 = (_classes(0.40767, 4e-5, 1e-5, 0.0014, 0.59088),)

# Sources: tests/models/test_blip*.py and examples/*.ipynb of https://github.com/salesforce/LAVIS, and
# tests/models/blip_2/test_modeling_blip_2.py and blip/test_modeling_blip.py of
# https://github.com/huggingface/transformers (greedy, 20 tokens).
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "blip2_opt/pretrain_opt2.7b": _caption("the merlion fountain in singapore"),
    "blip2_opt/caption_coco_opt2.7b": _caption("a statue of a mermaid spraying water into the air"),
    "blip2_opt/pretrain_opt6.7b": _caption("a statue of a merlion in front of a water fountain"),
    "blip2_opt/caption_coco_opt6.7b": _caption("a large fountain spraying water into the air"),
    "blip2_t5/pretrain_flant5xl": _caption("marina bay sands, singapore"),
    "blip2_t5/pretrain_flant5xxl": (
        *_caption("the merlion statue in singapore"),
        PublishedText("merlion.png", "singapore", WHICH_CITY),
        PublishedText(
            "merlion.png",
            "it has a statue of a merlion",
            "Question: which city is this? Answer: singapore. Question: why?",
        ),
        PublishedText("merlion.png", "merlion is a portmanteau of mermaid and lion", MERLION_TALK),
    ),
    "blip2/pretrain": STAGE_1_PRETRAINED,
    "Salesforce/blip2-opt-2.7b": (
        PublishedText("demo.jpg", "a woman sitting on the beach with a dog", num_beams=1, max_new_tokens=20),
        PublishedText("demo.jpg", "it's not a city, it's a beach", WHICH_CITY, num_beams=1, max_new_tokens=20),
    ),
    "Salesforce/blip2-flan-t5-xl": (
        PublishedText("demo.jpg", "woman playing with dog on the beach", num_beams=1, max_new_tokens=20),
        PublishedText("demo.jpg", "san diego", WHICH_CITY, num_beams=1, max_new_tokens=20),
    ),
    "Salesforce/blip2-itm-vit-g": (
        PublishedMatch("demo.jpg", "A woman and her dog sitting in a beach", 0.9762, 0.4406),
    ),
    "blip_caption/base_coco": (*_blip_caption(FOUNTAIN), PublishedLoss("merlion.png", STATUE, 2.7152)),
    "blip_caption/large_coco": _blip_caption(STATUE),
    "blip_vqa/vqav2": (
        PublishedAnswer("merlion.png", "Which city is this photo taken?", "singapore"),
        PublishedAnswer("merlion.png", "What time is this during the day?", "sunset"),
        PublishedAnswer("merlion.png", "Is it Singapore or London?", "singapore"),
        PublishedChoice(
            "merlion.png",
            "Which city is this photo taken?",
            ("Singapore", "London", "Palo Alto", "Tokyo"),
            "Singapore",
        ),
    ),
    "blip_image_text_matching/base": (
        PublishedMatch("merlion.png", "merlion in Singapore", 0.98613, 0.4633),
        PublishedMatch("merlion.png", "a random irrelevant caption", 0.05704, 0.23282),
    ),
    "blip_image_text_matching/large": (
        PublishedMatch("merlion.png", "merlion in Singapore", 0.99466, 0.4474),
        PublishedMatch("merlion.png", "a random irrelevant caption", 0.04744, 0.12821),
    ),
    "blip_feature_extractor/base": (
        PublishedMatch("merlion.png", FOUNTAIN, None, 0.2622),
        PublishedMean("merlion.png", FOUNTAIN, "image", -0.02032),
        PublishedMean("merlion.png", FOUNTAIN, "image projected", -0.0023),
        PublishedMean("merlion.png", FOUNTAIN, "text", -6.6098e-5),
        PublishedMean("merlion.png", FOUNTAIN, "text projected", -0.002149),
        PublishedMean("merlion.png", FOUNTAIN, "both", -0.00095),
        _classes(0.82005, 0.00011, 0.0, 0.0106, 0.16924),
    ),
    "clip/ViT-B-16": CLIP_B_16,
    "openai/clip-vit-base-patch16": CLIP_B_16,
    "Salesforce/blip-image-captioning-base": (
        PublishedText("demo.jpg", "a woman and her dog on the beach", num_beams=1, max_new_tokens=16),
    ),
    "Salesforce/blip-vqa-base": (PublishedAnswer("demo.jpg", "how many dogs are in the picture?", "1"),),
    "Salesforce/blip-itm-base-coco": (
        PublishedMatch("demo.jpg", "A woman and her dog sitting in a beach", None, 0.5162),
    ),
}


def published_outputs(name: str) -> tuple[Published, ...]:
    """What is known of an official model, under any of its names.

    Raises:
        CheckpointError: nothing was published, or there is no such model.
    """
    model = find_model(name)
    found = PUBLISHED.get(name if model is None else model.name)
    if found is None:
        raise CheckpointError(
            f"no outputs of {name} were published to compare with: there are of {', '.join(PUBLISHED)}"
        )
    return found


def verify(model: Model, published: Sequence[Published], images: Path | None = None) -> Iterator[Outcome]:
    """Run a model on what was published of it, one outcome each as it is known.

    Args:
        images: a folder with the photos of `IMAGES`; by default they are downloaded.

    Raises:
        ImageError: a photo cannot be had.
    """
    for each in published:
        yield each.run(model, IMAGES[each.image] if images is None else images / each.image)


def _shown(itm: float | None, itc: float) -> str:
    return f"itc {itc:.4f}" + ("" if itm is None else f", itm {itm:.4f}")
