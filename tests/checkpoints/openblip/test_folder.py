"""Model folders: what is saved comes back, and whatever breaks is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import openblip.checkpoints.openblip.folder as native
import openblip.checkpoints.tensors.writing as writing
from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts
from openblip.checkpoints.openblip.folder import load_native, pack, save_native
from openblip.checkpoints.tensors.files import SafetensorsFile
from openblip.errors import CheckpointError, OptionError
from openblip.generation.options import GenerationOptions
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates

CAPTIONS = GenerationOptions(num_beams=2, max_new_tokens=9, min_new_tokens=1, length_penalty=0.5)
ANSWERS = GenerationOptions(
    num_beams=3, max_new_tokens=7, min_new_tokens=0, length_penalty=-0.5, no_repeat_ngram_size=3
)
VIT = VitConfig(image_size=32, patch_size=16, width=16, depth=1, num_heads=2, mlp_width=32)
QUERIES = QFormerConfig(image_width=16, num_queries=2, width=16, depth=2, num_heads=2, ffn_width=32)


def bare_parts(decoder: OptConfig | None = None) -> ModelParts:
    """A ViT and a Q-Former without text side."""
    config = Blip2Config(VIT, replace(QUERIES, vocab_size=0), decoder, vision_norm_eps=1e-6)
    return ModelParts("bare", Blip2Network(config).eval(), ImageTransform(32), None, None)


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "broken"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_float32_round_trip_is_exact(tiny_parts: ModelParts, tmp_path: Path) -> None:
    parts = replace(
        tiny_parts,
        transform=ImageTransform(64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        prompts=PromptTemplates("ein Foto von", "Frage: {question} Antwort:", "F: {question} A: {answer} "),
        defaults=GenerationDefaults("</s>", CAPTIONS, ANSWERS),
    )
    save_native(parts, tmp_path / "new" / "model")
    found = load_native(tmp_path / "new" / "model")
    assert (found.name, found.transform, found.prompts, found.defaults) == (
        parts.name,
        parts.transform,
        parts.prompts,
        parts.defaults,
    )
    assert found.network.config == parts.network.config
    assert not found.network.training
    expected, state = parts.network.state_dict(), found.network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert parts.matching is not None
    assert found.matching is not None
    assert found.matching.batch(["a dog", "two red balls"])[0].equal(
        parts.matching.batch(["a dog", "two red balls"])[0]
    )
    assert found.matching.max_tokens == 16
    assert parts.tokenizer is not None
    assert found.tokenizer is not None
    assert found.tokenizer.encode("a red dog?\n") == parts.tokenizer.encode("a red dog?\n")
    assert (found.tokenizer.start_id, found.tokenizer.pad_id) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == [
        "config.json",
        "decoder_tokenizer.json",
        "model.safetensors",
        "qformer_tokenizer.json",
    ]


def test_a_vit_without_text_sides_round_trips(tmp_path: Path) -> None:
    parts = bare_parts()
    save_native(parts, tmp_path)
    found = load_native(tmp_path)
    assert found.matching is None
    assert found.tokenizer is None
    assert found.network.config == parts.network.config
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = parts.network.qformer.image(parts.network.image_features(pixels))
        assert torch.equal(found.network.qformer.image(found.network.image_features(pixels)), expected)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_smaller_storage_keeps_every_tensor_close(tiny_parts: ModelParts, tmp_path: Path, storage: str) -> None:
    save_native(tiny_parts, tmp_path, storage)
    found, expected = load_native(tmp_path).network.state_dict(), tiny_parts.network.state_dict()
    sizes = load_file(tmp_path / "model.safetensors")
    quantized = [name for name, tensor in sizes.items() if tensor.dtype == torch.int8]
    assert bool(quantized) == (storage == "int8")
    for name, tensor in expected.items():
        assert found[name].dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        if name in quantized:
            bound = tensor.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.001
        else:
            bound = tensor.abs() * 2**-11 + 2**-25
        assert ((found[name] - tensor).abs() <= bound).all(), name


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponents=st.lists(st.integers(-40, 30), min_size=1, max_size=4),
    zero_row=st.booleans(),
)
def test_int8_error_is_at_most_half_a_step(seed: int, exponents: list[int], zero_row: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = native.MATRIX_ELEMENTS // len(exponents) + 1
    matrix = torch.randn(len(exponents), columns, generator=generator)
    matrix *= 2.0 ** torch.tensor(exponents, dtype=torch.float32)[:, None]
    if zero_row:
        matrix[0] = 0
    packed = pack({"m": matrix}, "int8")
    assert packed["m"].dtype == torch.int8
    restored = packed["m"].float() * packed["m:scale"].float()[:, None]
    step = matrix.abs().amax(dim=1, keepdim=True) / 127
    assert ((restored - matrix).abs() <= step / 2 * 1.0001).all()


def test_float16_leaves_alone_what_it_cannot_hold() -> None:
    packed = pack({"large": torch.tensor([1.0, 1e5]), "fits": torch.tensor([65504.0])}, "float16")
    assert packed["large"].dtype == torch.float32
    assert packed["fits"].dtype == torch.float16


def test_an_unknown_storage_leaves_the_old_model_alone(folder: Path, tiny_parts: ModelParts) -> None:
    with pytest.raises(OptionError, match="int3"):
        save_native(replace(tiny_parts, name="newer"), folder, "int3")
    assert load_native(folder).name == "tiny"


def test_a_failed_save_keeps_the_old_model(
    folder: Path, tiny_parts: ModelParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half_written(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        save_native(replace(tiny_parts, name="newer", prompts=PromptTemplates("new")), folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    save_native(replace(tiny_parts, name="newer"), folder)
    assert load_native(folder).name == "newer"
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)


def test_others_may_read_the_weights(tiny_model_folder: Path) -> None:
    modes = {path.stat().st_mode for path in tiny_model_folder.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "decoder_tokenizer.json", "qformer_tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "folder"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\xff\x00<html>"}[damage])
    with pytest.raises(CheckpointError) as caught:
        load_native(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_damaged_header_never_crashes(
    tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    content = bytearray((tiny_model_folder / "model.safetensors").read_bytes())
    content[position] = byte
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(content)
    with suppress(CheckpointError):  # some bytes, of a name say, may change unnoticed here
        SafetensorsFile(path)


def test_a_folder_of_version_1_gives_the_same_defaults(folder: Path) -> None:
    def as_version_1(content: dict[str, Any]) -> None:
        content["version"] = 1
        content["generation"] = {
            "stop_token": "</s>",
            "caption_beams": 2,
            "caption_max_tokens": 9,
            "caption_min_tokens": 1,
            "caption_length_penalty": 0.5,
            "answer_beams": 3,
            "answer_max_tokens": 7,
            "answer_length_penalty": -0.5,
        }

    edit(folder, as_version_1)
    answers = replace(ANSWERS, no_repeat_ngram_size=None, min_new_tokens=1)  # an answer was never empty
    assert load_native(folder).defaults == GenerationDefaults("</s>", CAPTIONS, answers)


CONFIG_FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.update(format="gguf"), "not the config of an OpenBLIP model"),
    (lambda c: c.update(version=99), "format version 99"),
    (lambda c: c.pop("qformer"), "lacks 'qformer'"),
    (lambda c: c.pop("shared_width"), "lacks 'shared_width'"),
    (lambda c: c["qformer"].update(colour="red"), "unknown settings for QFormerConfig: colour"),
    (lambda c: c["image"].update(std=[1, 1, 0]), "std"),
    (lambda c: c["image"].pop("image_size"), "image_size"),
    (lambda c: c["vision"].update(kind="resnet"), "'resnet' is unknown, known are vit, efficientnet"),
    (lambda c: c["vision"].update(place_width=6), "place_width 6"),
    (lambda c: c["vision"].update(place_width=4), "gives 1284 channels, the Q-Former reads 1288"),
    (lambda c: c["qformer"].update(num_heads=5), "not a multiple of 5 heads"),
    (lambda c: c["qformer"].update(num_heads=0), "num_heads is 0: the smallest"),
    (lambda c: c["qformer"].update(depth="two"), "depth is 'two', not a whole number"),
    (lambda c: c["qformer"].update(depth=10**9), "depth is 1000000000: the largest that can be read is 1,000"),
    (lambda c: c["qformer"].update(dropout=float("nan")), "dropout is nan, not a number"),
    (lambda c: c["qformer"].update(num_queries=True), "num_queries is True, not a whole number"),
    (lambda c: c["decoder"].update(width=-32, num_heads=1), "width is -32"),
    (lambda c: c["decoder"].update(pre_norm="yes"), "pre_norm is 'yes', not true or false"),
    (lambda c: c["vision"].update(width_scale=10**6), "width_scale is 1000000"),
    (lambda c: c["image"].update(image_size=10**6), "image_size is 1000000"),
    (lambda c: c["generation"]["captions"].update(num_beams=0), "generation.captions: num_beams is 0"),
    (lambda c: c["generation"]["answers"].update(num_beams="5"), "generation.answers: num_beams is '5'"),
    (lambda c: c["generation"]["answers"].update(beams=5), "unknown option beams: did you mean num_beams?"),
    (lambda c: c["generation"].update(captions=5), "unknown setting captions: 5"),
    (lambda c: c["generation"].update(caption_beams=0), "generation.captions: num_beams is 0"),
    (lambda c: c.update(generation=["captions"]), "generation is ['captions']"),
    (lambda c: c.update(vision_norm_eps="small"), "vision_norm_eps is 'small', not a number"),
    (lambda c: c.update(shared_width=-1), "shared_width is -1"),
    (lambda c: c.update(vision="vit"), "vision has no settings of an image encoder"),
    (lambda c: c.update(vision=None), "vision has no settings of an image encoder"),
    (lambda c: c.update(qformer=None), "null where settings of QFormerConfig belong"),
    (lambda c: c.update(matching_tokens="many"), "matching_tokens is 'many'"),
    (lambda c: c.update(matching_tokens=400), "matching_tokens is 400"),
    (lambda c: c["prompts"].update(question="Q: {query}"), "prompt cannot be filled in (KeyError('query'))"),
    (lambda c: c["prompts"].update(turn=3), "turn is 3, not a text"),
    (
        lambda c: c["qformer"].update(width=64),
        "does not fit its config: qformer.queries is [1, 4, 32], not [1, 4, 64]",
    ),
    (lambda c: c["qformer"].update(depth=1), "qformer.layers.1.query_ffn.fc1.bias is unknown"),
    (lambda c: c["decoder"].update(depth=3), "decoder.layers.2.attention_norm.weight is missing"),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_FAULTS)
def test_a_wrong_config_is_explained(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_native(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_json_that_is_nested_without_end_is_no_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_native(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_no_weights(folder: Path, kind: torch.dtype) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({**state, "itm_head.weight": state["itm_head.weight"].to(kind)}, path)
    with pytest.raises(CheckpointError, match=rf"itm_head\.weight is {str(kind)[6:]}, not a number with a fraction"):
        load_native(folder)


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor for name, tensor in state.items() if name != "qformer.queries"}, path)
    with pytest.raises(CheckpointError, match=r"qformer\.queries is missing$"):
        load_native(folder)
    save_file({**state, "lora.a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"lora\.a is unknown$"):
        load_native(folder)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}, path)
    with pytest.raises(CheckpointError, match=r"decoder\.\S+ is missing; .* and \d+ more$"):
        load_native(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    shutil.copy(folder / "qformer_tokenizer.json", folder / "decoder_tokenizer.json")
    with pytest.raises(CheckpointError, match="no token '</s>'"):
        load_native(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    path = folder / "qformer_tokenizer.json"
    words = Tokenizer.from_file(str(path))
    words.add_tokens(["zebra"])
    words.save(str(path))
    with pytest.raises(CheckpointError, match=r"qformer_tokenizer\.json has 62 tokens, the model knows 61"):
        load_native(folder)


def test_an_empty_network_wakes_no_compiler() -> None:
    """What PyTorch computes on the meta device imports half of its compiler, for nothing."""
    program = (
        "import sys; from pathlib import Path; from openblip.checkpoints.openblip.folder import empty_network;"
        "from tests.checkpoints.openblip.test_folder import VIT, QUERIES; from openblip.nn.blip2 import Blip2Config;"
        "empty_network(Blip2Config(VIT, QUERIES), Path('config.json')); sys.exit('sympy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
