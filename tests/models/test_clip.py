"""A CLIP as users hold it: every file it comes in, transformers' and OpenAI's numbers, and what it refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import openblip
from openblip import devices
from openblip.checkpoints.clip_models import HUB_NAMES, MODELS, OPENAI_NAMES, clip_config
from openblip.checkpoints.hub.sources import LocalFile
from openblip.checkpoints.lavis.clip import load_clip
from openblip.checkpoints.model_entry import TEXT, VISION, ModelEntry
from openblip.checkpoints.names.clip import openai_layout
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.convert import convert
from openblip.checkpoints.tools.inspect import inspect
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.devices import choose_placement
from openblip.images.transform import to_pixels
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.clip import ClipConfig, ClipNetwork, ClipTextConfig
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.resnet_clip import ClipResNetConfig
from tests.checkpoints.clip_theirs import SIDE, TEXTS, TheirClip, clip_tokenizer, write_clip
from tests.pairs.clip import randomize
from tests.pairs.gaps import difference

CLOSE = 2e-5
SCALE = 14.285715


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TheirClip:
    # matrices that are large enough to be quantized
    return write_clip(tmp_path_factory.mktemp("clip"), hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def model(theirs: TheirClip) -> Model:
    return openblip.load(theirs.folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of sizes that both cut the same middle of."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(40, 50), (SIDE, SIDE), (64, 33), (90, 31)]
    return [
        Image.fromarray(torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy())
        for size in sizes
    ]


def their_outputs(theirs: TheirClip, images: list[Image.Image]) -> Any:
    inputs = theirs.processor(text=TEXTS, images=images, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return theirs.model(**inputs)


def test_scores_and_embeddings_are_transformers(theirs: TheirClip, model: Model, images: list[Image.Image]) -> None:
    found = their_outputs(theirs, images)
    assert difference(model.embed_images(images)[:, 0], found.image_embeds) <= CLOSE
    assert difference(model.embed_texts(TEXTS), found.text_embeds) <= CLOSE
    scores = model.scores(images, TEXTS, batch_size=3)
    assert scores.itm is None
    assert difference(scores.itc * theirs.model.logit_scale.exp().detach(), found.logits_per_image) <= 20 * CLOSE
    assert difference(openblip.similarity(model.embed_images(images), model.embed_texts(TEXTS)), scores.itc) <= CLOSE
    one = model.match(images[0], TEXTS[1])
    assert one.itm is None and one.itc == pytest.approx(float(scores.itc[0, 1]), abs=CLOSE)


def test_classes_are_means_of_their_texts(model: Model, images: list[Image.Image]) -> None:
    """Section 3.1.4 of CLIP's paper: unit vectors of all texts of a class, their mean, its unit vector."""
    labels, templates = ["dog", "red ball", "beach"], ["a photo of a {}", "the {}.", "{}"]
    vectors = torch.stack(
        [model.embed_texts([text.replace("{}", label) for text in templates]).mean(dim=0) for label in labels]
    )
    cosines = model.embed_images(images)[:, 0] @ F.normalize(vectors, dim=-1).T
    odds = (model.network.log_scale.exp() * cosines).softmax(dim=1)
    for row, expected in zip(model.classify(images, labels, templates=templates), odds, strict=True):
        found = {one.label: one.probability for one in row}
        assert [found[label] for label in labels] == pytest.approx(expected.tolist(), abs=CLOSE)
        assert [one.probability for one in row] == sorted(found.values(), reverse=True)


def test_ranking_is_by_cosines_alone(model: Model, images: list[Image.Image]) -> None:
    cosines = model.scores(images, TEXTS).itc
    both = model.rank_both(images, TEXTS, top=None)
    for row, ranked in zip(cosines, both.texts, strict=True):
        assert [one.index for one in ranked] == row.argsort(descending=True, stable=True).tolist()
        assert all(one.itm is None and one.score is None for one in ranked)
    assert [one.index for one in model.rank_images(TEXTS[0], images, top=2, rerank=50)] == [
        one.index for one in both.images[0][:2]
    ]
    assert model.rank_texts(images[0], TEXTS, top=1)[0].source == both.texts[0][0].source


def test_what_it_cannot_do_is_said_in_a_sentence(model: Model, images: list[Image.Image]) -> None:
    assert model.abilities == ("match", "embed", "classify")
    for name, given in (("caption", ()), ("ask", ("what?",)), ("chat", ())):
        with pytest.raises(openblip.CheckpointError, match=r": it can match, embed, classify$"):
            getattr(model, name)(images[0], *given)
    with pytest.raises(openblip.OptionError, match=r"by contrast \(ITC\) alone: leave out itm"):
        model.scores(images, TEXTS, itm=True)


def test_an_image_is_encoded_once(theirs: TheirClip, images: list[Image.Image], monkeypatch: Any) -> None:
    model = openblip.load(theirs.folder, device="cpu", dtype="float32")
    looks: list[int] = []
    embed = model.network.embed_images
    monkeypatch.setattr(model.network, "embed_images", lambda pixels: looks.append(len(pixels)) or embed(pixels))
    found = list(model.embed_images_many([*images, "gone.png", images[0]], batch_size=4))
    assert [one.error is None for one in found] == [True] * 4 + [False, True]
    model.scores(images, TEXTS)
    model.classify(images[0], ["dog"])
    assert looks == [4] and model.image_cache.nbytes == 4 * 4 * 40
    encoded = model.encode_image(images[0])
    assert encoded.features.shape == (1, 40)
    assert model.match(encoded, "a dog") == model.match(images[0], "a dog")


def test_it_is_saved_and_quantized(theirs: TheirClip, model: Model, images: list[Image.Image], tmp_path: Path) -> None:
    folder = model.save(tmp_path / "saved")
    again = openblip.load(folder, device="cpu", dtype="float32")
    assert again.network.config == model.network.config and again.parts.transform == model.parts.transform
    exact = model.scores(images, TEXTS).itc
    assert torch.equal(again.scores(images, TEXTS).itc, exact)
    quantize_model(theirs.folder, tmp_path / "small", 8)
    for place, dtype in ((theirs.folder, "int8"), (folder, "int4"), (tmp_path / "small", "auto")):
        small = openblip.load(place, device="cpu", dtype=dtype)
        assert len(quantized_layers(small.network)) >= 8
        assert difference(small.scores(images, TEXTS).itc, exact) <= (0.05 if dtype == "int4" else 0.02)


class Holder(nn.Module):
    """Nothing but what lies in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(state: dict[str, Tensor], path: Path) -> None:
    """A state dict as a TorchScript archive, in which OpenAI's names are places in a tree of modules."""
    root = Holder()
    for name, tensor in state.items():
        *above, last = name.split(".")
        place: nn.Module = root
        for part in above:
            if part not in dict(place.named_children()):
                place.add_module(part, Holder())
            place = place.get_submodule(part)
        if tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            place.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cast(Any, torch.jit).script(root).save(path)


def entry_of(config: ClipConfig, side: int) -> ModelEntry:
    return replace(MODELS[0], build_config=lambda: config, image_size=side)


@pytest.mark.parametrize("kind", ["archive", "pt", "safetensors", "wrapped"])
@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_openais_files_are_read(
    theirs: TheirClip, model: Model, images: list[Image.Image], tmp_path: Path, kind: str, vision: str
) -> None:
    if vision == "vit":
        network, side = cast(ClipNetwork, model.network), SIDE
    else:
        side, text = 64, ClipTextConfig(len(clip_tokenizer()), 48, 2, 2, 96)
        resnet = ClipResNetConfig(side, 8, (1, 2, 1, 1), 4, 40)
        network = ClipNetwork(ClipConfig(resnet, text, 40)).eval()
        randomize(network)
    named = openai_layout(network.config).to_theirs(network.state_dict())
    state = {name: tensor.contiguous() for name, tensor in named.items()}
    if kind == "archive":
        # as OpenAI's: half precision but for norms and tables
        state = {name: one.half() if one.ndim == 2 and "token" not in name else one for name, one in state.items()}
        archive(state | {"input_resolution": torch.tensor(side), "vocab_size": torch.tensor(563)}, tmp_path / "one.pt")
    elif kind == "safetensors":
        save_file(state, tmp_path / "one.pt")
    else:
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in state.items()}}
        torch.save(state if kind == "pt" else wrapped, tmp_path / "one.pt")
    entry = entry_of(network.config, side)
    places = (tmp_path / "one.pt", theirs.folder)
    found = [LocalFile(source, path) for source, path in zip(entry.files, places, strict=True)]
    placement = choose_placement("cpu", "float32")
    loaded = model_of(load_clip(entry, found, ReadOptions()), placement)
    expected = F.normalize(network.embed_images(images_of(images, loaded)), dim=-1)
    assert difference(loaded.embed_images(images)[:, 0], expected.detach()) <= (5e-3 if kind == "archive" else CLOSE)
    assert loaded.embed_texts("a dog").shape == (40,)
    other = found[0].path.rename(tmp_path / "other.pt")
    with pytest.raises(openblip.CheckpointError, match=r"other\.pt(: the image encoder has no| does not fit)"):
        load_clip(MODELS[0], found, ReadOptions(checkpoint=other))


def images_of(images: list[Image.Image], model: Model) -> Tensor:
    return to_pixels(images, model.parts.transform)


def test_layouts_lead_to_one_another(theirs: TheirClip, model: Model, tmp_path: Path) -> None:
    convert(theirs.folder, tmp_path / "own", "openblip")
    convert(tmp_path / "own", tmp_path / "theirs", "transformers")
    again = type(theirs.model).from_pretrained(tmp_path / "theirs")
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert (
        type(theirs.processor).from_pretrained(tmp_path / "theirs").tokenizer(TEXTS)["input_ids"]
        == (theirs.processor.tokenizer(TEXTS)["input_ids"])
    )
    (checkpoint,) = convert(tmp_path / "own", tmp_path / "lavis", "lavis")
    state = torch.load(checkpoint, weights_only=True)
    assert state["visual.proj"].shape == (128, 40) and "transformer.resblocks.1.attn.in_proj_weight" in state
    counted = [inspect(place).parts for place in (checkpoint, tmp_path / "theirs", tmp_path / "own")]
    assert all(set(parts) == {VISION, TEXT} for parts in counted)
    assert len({sum(part.parameters for part in parts.values()) for parts in counted}) == 1
    entry = entry_of(model.network.config, SIDE)
    found = [LocalFile(source, path) for source, path in zip(entry.files, (checkpoint, theirs.folder), strict=True)]
    back = load_clip(entry, found, ReadOptions()).network.state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.network.state_dict().items())


def test_a_resnet_and_codes_are_nothing_for_transformers(theirs: TheirClip, tmp_path: Path) -> None:
    text = ClipTextConfig(len(clip_tokenizer()), 48, 2, 2, 96)
    network = ClipNetwork(ClipConfig(ClipResNetConfig(64, 8, (1, 1, 1, 1), 4, 40), text, 40))
    parts = openblip.load(theirs.folder, device="cpu").parts
    parts = replace(parts, network=network, transform=replace(parts.transform, image_size=64))
    own = model_of(parts, choose_placement("cpu"))
    own.save(tmp_path / "resnet")
    with pytest.raises(openblip.CheckpointError, match="has a ResNet, write it for lavis"):
        convert(tmp_path / "resnet", tmp_path / "theirs", "transformers")
    assert openblip.load(tmp_path / "resnet", device="cpu", dtype="int8").embed_texts("a dog").shape == (40,)


@pytest.mark.parametrize("size", OPENAI_NAMES)
def test_weights_of_official_models_are_counted(size: Any) -> None:
    with torch.device("meta"):
        network = ClipNetwork(clip_config(size))
    text = (network.text, network.text_projection)
    parts = {VISION: (network.vision, network.image_projection), TEXT: text}
    counted = {
        name: sum(one.numel() for module in modules if module is not None for one in module.parameters())
        for name, modules in parts.items()
    }
    counted[TEXT] += network.log_scale.numel()
    entries = [model for model in MODELS if model.name in (f"clip/{size}", HUB_NAMES.get(size))]
    assert len(entries) == (1 if size == "RN50" else 2)
    assert all(entry.params == counted for entry in entries)


@pytest.mark.parametrize(
    "broken", [{"crop_size": 48}, {"do_center_crop": False}, {"size": {"height": 32, "width": 30}}]
)
def test_another_way_to_bring_images_to_a_square_is_refused(
    theirs: TheirClip, tmp_path: Path, broken: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(theirs.folder, tmp_path / "folder"))
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= broken
    path.write_text(json.dumps(content))
    with pytest.raises(openblip.CheckpointError, match=r"processor_config\.json: "):
        openblip.load(folder, device="cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_a_quantized_model_attends_to_images_in_half_precision_where_that_is_fast(
    theirs: TheirClip, images: list[Image.Image], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: fast)
    model = openblip.load(theirs.folder, device="cpu", dtype="int8")
    found = [block.attention.dtype for block in model.network.vision.blocks]
    assert found == [torch.bfloat16 if fast else None] * len(found)
    assert model.embed_images(images).isfinite().all()
    assert all(block.attention.dtype is None for block in model.network.text.blocks)
