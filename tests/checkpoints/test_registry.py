"""Models are found by their names: all of them, by pattern, family, ability, and by whether they are here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import openblip
from openblip.checkpoints import DEFAULT_MODEL, registry
from openblip.checkpoints.blip2_models import BERT, MINI, MODELS, OFFICIAL
from openblip.checkpoints.families import Family, find_family
from openblip.checkpoints.hub.download import LAVIS_ARCHITECTURE, find_files
from openblip.checkpoints.hub.sources import WebFile
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.registry import did_you_mean, find_model, folder_of, list_models
from openblip.checkpoints.tools.plan import memory_of
from openblip.errors import CheckpointError, DownloadError, OptionError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.int4_wide import Int4WideLinear
from openblip.nn.quant.linear import Linear, WordTable
from openblip.nn.quant.swap import quantized_layers, swap_layers

from .official import official

HUB_T5 = "Salesforce/blip2-flan-t5-xl"
WITHOUT_HEAD = 768 * 768
"""Weights of the head that writes, which the hub's folders for matching leave out."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


def names(found: list[openblip.ModelEntry]) -> set[str]:
    return {model.name for model in found}


def test_all_models_are_listed() -> None:
    assert openblip.list_models(family="blip2") == [MINI, *OFFICIAL] == list(MODELS)
    assert names(openblip.list_models()) >= names(list(MODELS))
    assert find_family("blip2", Path("x")).models == MODELS
    assert MINI.name == DEFAULT_MODEL


@pytest.mark.parametrize("name", [name for model in MODELS for name in model.names])
def test_load_knows_every_name(name: str) -> None:
    """What is not on this machine is not called unknown, but missing."""
    if folder_of(name) is not None:
        assert load_parts(name).name == name
        return
    assert find_files(name) is None
    with pytest.raises(DownloadError, match=f"{name} is not on this machine, and HF_HUB_OFFLINE forbids"):
        openblip.load(name)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("opt-2.7b", {"Salesforce/blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b-coco"}),
        ("OPT-2.7B-coco", {"Salesforce/blip2-opt-2.7b-coco"}),
        ("*opt-2.7b", {"Salesforce/blip2-opt-2.7b"}),
        ("blip2_feature_extractor/*", {"blip2/pretrain", "blip2/pretrain_vitL", "blip2/coco"}),
        ("feature_extractor/coco", {"blip2/coco"}),
        ("*flant5x?", {"blip2_t5/pretrain_flant5xl", "blip2_t5/caption_coco_flant5xl"}),
        ("*/blip2-[fo]*l-coco", {"Salesforce/blip2-flan-t5-xl-coco"}),
        ("mini", {"mini"}),
        ("", names([*MODELS])),
        ("llava", set()),
        ("opt", {model.name for model in OFFICIAL if "opt" in model.name}),
    ],
)
def test_patterns_of_names_and_aliases(pattern: str, found: set[str]) -> None:
    assert names(list_models(pattern, family="blip2")) == found


def test_abilities() -> None:
    matching = names(list_models(ability="match", family="blip2"))
    assert matching == {"mini"} | {model.name for model in OFFICIAL if model.language is None}
    assert names(list_models(ability="chat", family="blip2")) == names(list(MODELS)) - matching | {"mini"}
    assert names(list_models("*coco*", ability="embed", family="blip2")) == {
        "blip2/coco",
        "Salesforce/blip2-itm-vit-g-coco",
    }


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_what_is_on_this_machine(home: Path) -> None:
    def here() -> set[str]:
        found = names(list_models(cached=True, family="blip2"))
        assert names(list_models(cached=False, family="blip2")) == names(list(MODELS)) - found
        return found

    assert here() == {"mini"}
    hub = home / "hub" / "models--Salesforce--blip2-opt-2.7b" / "snapshots" / "main"
    for file in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        touch(hub / file)
    assert here() == {"mini"}  # its pieces are missing
    touch(hub / "model.safetensors")
    assert here() == {"mini", "Salesforce/blip2-opt-2.7b"}
    model = official("blip2/pretrain")
    for source in model.files:
        if isinstance(source, WebFile):
            touch(home / "openblip" / "lavis" / source.name)
    assert not model.cached
    touch(home / "hub" / f"models--{BERT.replace('/', '--')}" / "snapshots" / "main" / "vocab.txt")
    assert here() == {"mini", "Salesforce/blip2-opt-2.7b", "blip2/pretrain"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"family": "blip-2"}, "'blip-2' is no family of models: did you mean blip2?"),
        ({"family": "BLIP2"}, "'BLIP2' is no family of models: did you mean blip2?"),
        ({"family": "llava"}, r"'llava' is no family of models: blip2.* are"),
        ({"ability": "captions"}, r"'captions' is no ability of a model: did you mean caption\?"),
        ({"ability": "vqa"}, r"'vqa' is no ability of a model: caption, ask, chat, match, embed, classify, judge are"),
        ({"ability": 3}, "3 is no ability of a model"),
        ({"pattern": None}, "the pattern is None: give a part of a name"),
    ],
)
def test_what_is_not_there_is_told(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        list_models(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Salesforce/blip2-opt-27b", "Salesforce/blip2-opt-2.7b"),
        ("blip2-flan-t5-xl", HUB_T5),
        ("salesforce/BLIP2-itm-vit-g", "Salesforce/blip2-itm-vit-g"),
        ("blip2_t5/pretrain_flant5_xl", "blip2_t5/pretrain_flant5xl"),
        ("pretrain_opt6.7b", "blip2_opt/pretrain_opt6.7b"),
        ("blip2_feature_extractor/pretrained", "blip2_feature_extractor/pretrain"),
        ("Mini", "mini"),
    ],
)
def test_a_typo_gives_the_nearest_name(typed: str, meant: str) -> None:
    assert find_model(typed) is None
    assert did_you_mean(typed).startswith(f"did you mean {meant}")
    if "/" not in typed or LAVIS_ARCHITECTURE.match(typed):
        with pytest.raises((CheckpointError, DownloadError), match=f"did you mean {meant}"):
            openblip.load(typed)


def test_what_is_no_typo_gives_no_guess() -> None:
    assert did_you_mean("llava") == "`openblip models` lists them all"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "mini"}, "there is a model 'mini' already"),
        ({"name": "sparrow", "aliases": ("blip2/coco",)}, "there is a model 'blip2/coco' already"),
        ({"name": "sparrow", "aliases": ("sparrow",)}, "there is a model 'sparrow' already"),
        ({"name": "sparrow", "family": "blip2"}, "sparrow is of the family 'blip2', not 'birds'"),
    ],
)
def test_a_family_with_names_that_are_taken_is_not_registered(change: dict[str, object], told: str) -> None:
    model = replace(MINI, **{"family": "birds", **change})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=told):
        openblip.register_family(
            Family("birds", Blip2Config, Blip2Network, models=(model,)),
            lambda parts, placement, cache: pytest.fail("nothing is composed"),
        )
    assert "birds" not in {model.family for model in registry.all_models()} and find_model("sparrow") is None
    with pytest.raises(CheckpointError, match="of the family 'birds': this OpenBLIP knows blip2"):
        find_family("birds", Path("config.json"))
    with pytest.raises(OptionError, match="no family of models"):
        list_models(family="birds")


@pytest.mark.parametrize(
    "program",
    [
        "import openblip; assert openblip.list_models(cached=True)",
        "from openblip.cli import app; app(['models', '--ability', 'caption'], standalone_mode=False)",
        "from openblip.cli import app; app(['models', 'opt', '--json'], standalone_mode=False)",
    ],
)
def test_lists_load_no_pytorch(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}; sys.exit('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model", list_models(), ids=lambda model: model.name)
def test_memory_of_quantized_models_is_that_of_their_networks(model: openblip.ModelEntry, bits: int) -> None:
    """Counted in the network that is built for the weights; scales, of which the estimate knows nothing, are few."""
    family = find_family(model.family, Path("x"))
    config = load_parts(model.name).network.config if model.folder is not None else model.config()
    with torch.device("meta"):
        network = family.network(config)
    matrices = {
        name: module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, Linear | WordTable)
    }
    swap_layers(network, bits)
    layers = quantized_layers(network)
    fewest = sum(matrices[name] for name, layer in layers.items() if isinstance(layer, Int4Linear | Int4WideLinear))
    head = WITHOUT_HEAD if model.name.startswith("Salesforce/blip2-itm") else 0
    assert model.int8_params == sum(matrices[name] for name in layers) - head
    assert fewest == (model.int4_params if bits == 4 else 0)
    nbytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert memory_of(model)[f"int{bits}"] == pytest.approx(nbytes / 1e6, rel=0.02 if bits == 8 else 0.06)
