"""BLIP in LAVIS' files and those of the original BLIP repository, which hold more than one task needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.blip_models import BERT, GENERATION, MODELS, PROMPTS
from openblip.checkpoints.hub.sources import LocalFile, Repository, WebFile
from openblip.checkpoints.lavis.blip import load_blip, save_blip, to_lavis
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.inspect import inspect
from openblip.errors import CheckpointError
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.quant.swap import quantized_layers
from tests.models.blip_models import ENCODE, small_config, small_parts, write_vocabulary

TASKS = ("caption", "answer", "match", "embed", "pretrain", "pair", "entail")


def read(
    path: Path,
    config: BlipConfig,
    options: ReadOptions = ReadOptions(),  # noqa: B008
) -> ModelParts[BlipNetwork]:
    """As a model of the registry is read from its downloaded files."""
    model = replace(
        MODELS[0], image_size=32, prompts=PROMPTS, generation=GENERATION, build_config=lambda: config, name="small"
    )
    words = write_vocabulary(path.parent / "words")
    found = [
        LocalFile(WebFile("checkpoint.pth", (), 0), path),
        LocalFile(Repository(BERT, (), 0), words),
    ]
    return load_blip(model, found, options)


def saved(folder: Path, task: str, change: Callable[[dict[str, Tensor]], None] | None = None) -> Path:
    parts = small_parts(task, folder)
    state = to_lavis(parts.network)
    if change is not None:
        change(state)
    torch.save({"model": state, "epoch": 3, "config": {}}, folder / "file.pth")
    return folder / "file.pth"


@pytest.mark.parametrize("task", TASKS)
def test_round_trip(tmp_path: Path, task: str) -> None:
    parts = small_parts(task, tmp_path)
    save_blip(parts, tmp_path / "lavis")
    again = read(tmp_path / "lavis" / "checkpoint.pth", parts.network.config)
    assert again.family == "blip" and again.network.config == parts.network.config
    own, found = parts.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(own[name], found[name]) for name in own)
    for text in ("a photo of two children", "what is this?"):
        assert [one.encode(text) for one in (again.tokenizer, again.matching) if one is not None] == [
            one.encode(text) for one in (parts.tokenizer, parts.matching) if one is not None
        ]


def test_what_training_left_behind_is_dropped(tmp_path: Path) -> None:
    """The original BLIP's retrieval files: momentum copies, queues, and its own name of their pointer."""

    def add(state: dict[str, Tensor]) -> None:
        for name in list(state):
            part, dot, rest = name.partition(".")
            if part in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
                state[f"{part}_m{dot}{rest}"] = torch.zeros_like(state[name])
        state |= {"image_queue": torch.zeros(4, 9), "text_queue": torch.zeros(4, 9), "idx_queue": torch.zeros(1, 9)}
        state |= {"ptr_queue": torch.zeros(1, dtype=torch.int64), "temp": torch.tensor(0.05)}

    path = saved(tmp_path, "match", add)
    found = read(path, small_config("match"))
    own = small_parts("match", tmp_path / "own").network.state_dict()
    for name, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, torch.tensor(0.05) if name == "temperature" else own[name])


def test_heads_of_other_tasks_are_dropped(tmp_path: Path) -> None:
    """The pre-trained file holds a decoder and ITM's head, which the feature extractor has no use for."""
    other = to_lavis(small_parts("caption", tmp_path / "other").network)
    path = saved(tmp_path, "match", lambda state: state.update({k: v for k, v in other.items() if "decoder" in k}))
    found = read(path, small_config("embed"))
    assert found.matching is not None and found.tokenizer is None
    assert not any(name.startswith(("decoder", "itm_head")) for name in found.network.state_dict())


def test_classes_are_those_of_the_file(tmp_path: Path) -> None:
    """Of a head of another size, and with the momentum copies that LAVIS trains with."""

    def change(state: dict[str, Tensor]) -> None:
        state |= {"cls_head.2.weight": torch.randn(5, 128), "cls_head.2.bias": torch.randn(5)}
        state |= {name.replace("cls_head.", "cls_head_m."): state[name] for name in state if "cls_head." in name}

    found = read(saved(tmp_path, "entail", change), small_config("entail"))
    assert found.network.config.num_classes == 5 and found.classes == ("0", "1", "2", "3", "4")
    assert read(saved(tmp_path, "entail"), small_config("entail")).classes == ("contradiction", "neutral", "entailment")
    with pytest.raises(CheckpointError, match="holds no head for classes"):
        read(saved(tmp_path, "match"), small_config("entail"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("text_decoder.bert.embeddings.LayerNorm.bias"), "decoder.norm.bias is missing"),
        (lambda state: state.update(strange=torch.zeros(1)), "this BLIP has no place for strange"),
        (
            lambda state: state.update({"text_decoder.cls.predictions.bias": torch.ones(7)}),
            r"predictions\.(decoder\.)?bias",
        ),
        (
            lambda state: state.update({"text_decoder.cls.predictions.decoder.bias": torch.ones(ENCODE + 1)}),
            "only checkpoints that tie them can be read",
        ),
        (lambda state: [state.pop(name) for name in list(state) if "visual" in name], "holds no image encoder"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = saved(tmp_path, "caption", change)
    with pytest.raises(CheckpointError, match=message) as error:
        read(path, small_config("caption"))
    assert str(path) in str(error.value)


def test_weights_are_quantized_as_they_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, "answer")
    found = read(path, small_config("answer"), ReadOptions(bits=8))
    assert len(quantized_layers(found.network)) > 20
    with pytest.raises(CheckpointError, match="LAVIS cannot read quantized weights"):
        save_blip(found, tmp_path / "again")


def test_a_vocabulary_with_another_number_of_words_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "caption")
    with (write_vocabulary(tmp_path / "words") / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("more\n")
    with pytest.raises(CheckpointError, match=r"\[DEC\] has the id"):
        load_blip(
            replace(MODELS[0], image_size=32, build_config=lambda: small_config("caption")),
            [
                LocalFile(WebFile("x", (), 0), path),
                LocalFile(Repository(BERT, (), 0), tmp_path / "words"),
            ],
            ReadOptions(),
        )


@pytest.mark.parametrize("task", TASKS)
def test_inspect_counts_each_weight_once(tmp_path: Path, task: str) -> None:
    parts = small_parts(task, tmp_path)
    save_blip(parts, tmp_path / "lavis")
    found = inspect(tmp_path / "lavis" / "checkpoint.pth")
    assert found.parameters == sum(
        tensor.numel()
        for name, tensor in parts.network.state_dict().items()
        if task != "match" or name != "temperature"
    )
    assert "other" not in found.parts


def test_a_captioner_is_read_from_pre_training_at_its_image_size(tmp_path: Path) -> None:
    """Such a file has positions for smaller images than the models that are trained from it."""
    pretrained = small_parts("pretrain", tmp_path)
    width = pretrained.network.config.vision.width
    config = small_config("caption", width)
    path = saved(tmp_path, "pretrain")
    found = read(path, replace(config, vision=replace(config.vision, image_size=48)))
    assert found.network.config == config and found.transform.image_size == 32
    ids, features = torch.tensor([[5, 7, 9]]), torch.randn(1, 17, width)
    with torch.no_grad():
        first, second = (
            network.decoder.decode(network.decoder.embed(ids), None, network.decoder.remember(features))
            for network in (pretrained.network, found.network)
        )
    assert torch.allclose(first, second, atol=1e-5)
