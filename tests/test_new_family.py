"""A family of models that this package does not know joins by the public seam alone.

It is captioned, asked, listed, saved, loaded, quantized and evaluated without any change in src/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import openblip
from openblip import ModelEntry
from openblip.checkpoints.families import Family
from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts
from openblip.checkpoints.origin import model_files
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.data.sample import Sample
from openblip.devices import Placement, choose_placement
from openblip.evaluation.score import score_model
from openblip.evaluation.settings import CaptionSettings, Settings, Task, Wish
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageCache
from openblip.images.transform import ImageTransform
from openblip.models.abilities import Components
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.models.writer import Writer
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.t5 import T5Config
from openblip.nn.vit import VitConfig
from openblip.text import Tokenizer
from openblip.training.lora.adapters import LoraSection, add_lora
from openblip.training.recipe import Stage
from openblip.training.tasks.table import learner_of
from tests.checkpoints.theirs import t5_words
from tests.cli.conftest import Run, run  # noqa: F401


@dataclass(frozen=True)
class ToyConfig:
    vision: VitConfig
    language: T5Config


class ToyNetwork(nn.Module):
    """A ViT whose patches stand in front of what a T5 reads."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        self.projection = nn.Linear(config.vision.width, config.language.width)
        self.t5 = config.language.build()


class ToyImages:
    def __init__(self, parts: ModelParts[ToyNetwork], placement: Placement, cache: ImageCache) -> None:
        self.network, self.placement = parts.network, placement
        self.encoder = CachedEncoder(self.features, parts.transform, cache)

    def features(self, pixels: Tensor) -> Tensor:
        return self.network.vision(pixels.to(self.placement.device, self.placement.dtype))

    def visual_prompts(self, images: Sequence[EncodedImage]) -> list[Tensor]:
        return list(self.network.projection(torch.stack([image.features for image in images])))


def compose_toy(parts: ModelParts[ToyNetwork], placement: Placement, cache: ImageCache) -> Components:
    images = ToyImages(parts, placement, cache)
    writer = Writer(parts, parts.network.t5, images.encoder, images.visual_prompts)
    return Components(images.encoder, writer, None, ("caption", "ask"))


VISION = VitConfig(image_size=28, patch_size=14, width=32, depth=1, num_heads=2, mlp_width=48)
PLAIN = {"num_beams": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    words = Tokenizer(t5_words(), "</s>", "<pad>")
    language = T5Config(
        words.vocab_size, width=160, depth=1, decoder_depth=1, num_heads=2, head_width=16, ffn_width=192
    )
    torch.manual_seed(5)
    network = ToyNetwork(ToyConfig(VISION, language))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    entry = ModelEntry(
        name="doodle",
        aliases=("sketch/doodle",),
        family="toy",
        summary="a ViT and a T5, of random numbers",
        origin="openblip",
        abilities=("caption", "ask"),
        image_size=28,
        params={name: sum(map(torch.numel, part.parameters())) for name, part in network.named_children()},
        licence="MIT",
        terms="MIT",
        folder=tmp_path_factory.mktemp("models") / "doodle",
    )
    openblip.register_family(Family("toy", ToyConfig, ToyNetwork, models=(entry,)), compose_toy)
    parts = ModelParts(
        "doodle", network, ImageTransform(28), None, words, defaults=GenerationDefaults("</s>"), family="toy"
    )
    model = model_of(parts, choose_placement("cpu", "float32"))
    model.save(doodle().folder or "")
    return model


def doodle() -> openblip.ModelEntry:
    (entry,) = openblip.list_models(family="toy")
    return entry


def test_it_captions_and_answers_as_its_network_does(toy: Model, image_paths: list[Path]) -> None:
    found = toy.caption(image_paths, details=True, **PLAIN)
    assert len({caption.text for caption in found}) > 1 and toy.abilities == ("caption", "ask")
    for image_path, caption in zip(image_paths, found, strict=True):
        encoded = toy.encode_image(image_path)
        prompt = torch.cat([toy.network.projection(encoded.features), toy.network.t5.embed(torch.tensor([1]))])
        expected = generate(
            toy.network.t5, [prompt], GenerationOptions(**PLAIN, min_new_tokens=0, stop_ids=(1,)).resolved()
        )
        assert list(caption.log_probs) == pytest.approx(list(expected[0][0].log_probs), abs=1e-5)
    assert toy.ask(image_paths[0], ["what is it?", "is it red?"], **PLAIN) == [
        toy.ask(image_paths[0], question, **PLAIN) for question in ("what is it?", "is it red?")
    ]


def test_what_it_cannot_do_is_said(toy: Model, image_paths: list[Path]) -> None:
    with pytest.raises(openblip.CheckpointError, match="doodle has no text side to match with: it can caption, ask"):
        toy.match(image_paths[0], "a dog")


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_it_is_saved_loaded_and_quantized(toy: Model, image_paths: list[Path], tmp_path: Path, dtype: str) -> None:
    folder = toy.save(tmp_path / "toy")
    again = openblip.load(folder, device="cpu", dtype=dtype)
    assert (again.family, again.name, again.network.config) == ("toy", "doodle", toy.network.config)
    assert (len(quantized_layers(again.network)) > 0) == (dtype != "float32")
    if dtype == "float32":
        assert again.caption(image_paths, **PLAIN) == toy.caption(image_paths, **PLAIN)
    else:
        before, after = (one.caption(image_paths[0], details=True, **PLAIN) for one in (toy, again))
        assert after.log_probs[0] == pytest.approx(before.log_probs[0], abs=0.5)


@pytest.mark.parametrize("name", ["doodle", "sketch/doodle"])
def test_it_is_listed_and_loaded_by_name(toy: Model, name: str, image_paths: list[Path], tmp_path: Path) -> None:
    entry = doodle()
    assert openblip.list_models("doodle") == openblip.list_models(name) == [entry]
    assert entry in openblip.list_models(ability="caption", cached=True)
    assert entry not in openblip.list_models(ability="match") and entry not in openblip.list_models(family="blip2")
    again = openblip.load(name, device="cpu", dtype="float32")
    assert again.caption(image_paths, **PLAIN) == toy.caption(image_paths, **PLAIN)
    assert (again.name, again.family, again.abilities) == (entry.name, entry.family, entry.abilities)
    assert {path.parent for path in model_files(name) or []} == {entry.folder}
    quantize_model(name, tmp_path / "smaller", 8)
    assert quantized_layers(openblip.load(tmp_path / "smaller", device="cpu").network)


def test_the_command_line_lists_it(toy: Model, run: Run) -> None:  # noqa: F811
    (record,) = run("models", "--family", "toy", "--json").records
    parameters = sum(map(torch.numel, toy.network.parameters()))
    assert (record["name"], record["aliases"], record["cached"]) == ("doodle", ["sketch/doodle"], True)
    assert record["parameters"] == parameters and record["megabytes"] == pytest.approx(4e-6 * parameters, abs=0.1)
    assert "doodle is also sketch/doodle" in run("models", "sketch").out
    assert run("plan", "doodle", "--json").records[0]["name"] == "doodle"


def test_a_folder_that_went_away_is_told(toy: Model, tmp_path: Path) -> None:
    folder = doodle().folder
    assert folder is not None
    kept = folder.rename(tmp_path / "elsewhere")
    try:
        assert openblip.list_models("doodle", cached=False) == [doodle()]
        with pytest.raises(openblip.CheckpointError, match=r"the model doodle belongs in .*doodle, which is not there"):
            openblip.load("doodle")
    finally:
        kept.rename(folder)


def test_it_is_evaluated(toy: Model, image_paths: list[Path]) -> None:
    samples = [Sample(images=(image_path,), captions=("a red ball",)) for image_path in image_paths]
    found = score_model(
        toy, samples, Settings(Task.CAPTIONS, captions=CaptionSettings(Wish.NEVER, Wish.NEVER, Wish.NEVER))
    )
    assert [row.prediction for row in found.rows] == toy.caption(image_paths)


def test_it_is_not_trained_before_it_has_a_row_in_the_table(toy: Model) -> None:
    with pytest.raises(openblip.OptionError, match="doodle is of the family toy, which cannot be trained yet: give a "):
        learner_of(Stage.STAGE2, toy.family, toy.name)
    with pytest.raises(openblip.OptionError, match="there are no adapters for models of this family"):
        add_lora(toy.parts, LoraSection())


def test_a_name_is_taken_once(toy: Model) -> None:
    with pytest.raises(openblip.OptionError, match="there is a family 'toy' already"):
        openblip.register_family(Family("toy", ToyConfig, ToyNetwork), compose_toy)
