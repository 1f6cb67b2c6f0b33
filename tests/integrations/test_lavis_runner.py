"""LAVIS' runner: the settings, rates, steps and files of its own."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from openblip.checkpoints.lavis.blip import to_lavis as to_blip
from openblip.checkpoints.lavis.read import LavisFiles, read_lavis
from openblip.checkpoints.lavis.write import to_lavis
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.integrations.lavis import load_dataset, load_model, load_model_and_preprocess, registry, setup_task
from openblip.integrations.lavis.datasets import LavisDataset
from openblip.integrations.lavis.models import LavisModel
from openblip.integrations.lavis.processors import ClipImageTrainProcessor
from openblip.integrations.lavis.runner import RunSettings
from openblip.models.load import model_of
from openblip.training.loop.trainer import set_dropout
from tests.checkpoints.clip_theirs import write_clip
from tests.checkpoints.theirs import Theirs
from tests.models.blip_models import small_parts

from .coco import TEXTS, write_coco

RUN: dict[str, Any] = {
    "task": "captioning",
    "init_lr": "1e-3",
    "min_lr": 1e-4,
    "warmup_lr": 1e-6,
    "warmup_steps": 2,
    "weight_decay": 0.05,
    "max_epoch": 3,
    "batch_size_train": 4,
    "batch_size_eval": 8,
    "amp": True,
    "distributed": True,
    "resume_ckpt_path": None,
    "evaluate": False,
    "train_splits": ["train"],
    "valid_splits": [],
}


@pytest.fixture
def coco(tmp_path: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, LavisDataset]:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path / "home"))
    write_coco(tmp_path / "home", image_paths)
    return load_dataset("coco_caption")


@pytest.fixture
def trained(opt: Theirs, coco: dict[str, LavisDataset]) -> LavisModel:
    """A model to train, without dropout, and processors in the data."""
    model, images, texts = load_model_and_preprocess("blip2_opt", opt.folder)
    coco["train"].set_processors(images["eval"], texts["eval"])
    set_dropout([model.network], 0.0)
    return model


def runner(model: LavisModel, coco: dict[str, LavisDataset], output: Path, **changes: Any) -> Any:
    cfg = {"run": {**RUN, "output_dir": str(output), **changes}}
    return registry.get_runner_class("runner_base")(cfg, setup_task(cfg), model, {"coco_caption": coco})


def test_steps_are_those_of_lavis(trained: LavisModel, coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    start = copy.deepcopy(trained)
    runner(trained, coco, tmp_path / "out").train()
    # LAVIS' rules by hand: AdamW, matrices decay, rates by epoch; a batch is all there is.
    learning = [parameter for parameter in start.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim >= 2], "weight_decay": 0.05},
        {"params": [parameter for parameter in learning if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    rates = [1e-6, *(1e-4 + 9e-4 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (1, 2))]
    samples = coco["train"].collater([coco["train"][row] for row in range(len(TEXTS))])
    losses = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = start.train()({"image": samples["image"], "text_input": samples["text_input"]})["loss"]
        losses.append(f"{loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, expected), found in zip(start.named_parameters(), trained.parameters(), strict=True):
        # Where a gradient is nearly zero, Adam makes a step of its sign; that of a key's bias is.
        assert name.endswith("key.bias") or ((found - expected).abs() > 1e-5).float().mean() < 0.01, name
    log = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text(encoding="utf-8").splitlines()]
    assert [entry["train_loss"] for entry in log[1:]] == losses
    assert [float(entry["train_lr"]) for entry in log[1:]] == pytest.approx(rates, rel=1e-2)


def test_checkpoints_are_lavis_files(trained: LavisModel, coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    network = trained.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    runner(trained, coco, tmp_path / "out", max_epoch=2, num_workers=1, batch_size_train=2).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pth")) == ["checkpoint_0.pth", "checkpoint_1.pth"]
    frozen = {name for name, tensor in network.state_dict().items() if name.startswith(("vision.", "decoder."))}
    assert all(network.state_dict()[name].equal(before[name]) for name in frozen)
    assert not network.state_dict()["qformer.queries"].equal(before["qformer.queries"])
    parts = to_lavis(network.state_dict(), network.config)
    vision, language = tmp_path / "vision.pth", tmp_path / "language"
    torch.save(parts.vision, vision)
    language.mkdir()
    torch.save({name: tensor.clone() for name, tensor in parts.language.items()}, language / "pytorch_model.bin")
    files = LavisFiles(tmp_path / "out/checkpoint_1.pth", vision, language, None)
    read = read_lavis(network.config, files).state_dict()
    assert read.keys() == network.state_dict().keys()
    assert all(tensor.equal(read[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_blip_trains(task: str, coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    """All of it learns; the checkpoint is one of LAVIS', which the original name of the model takes."""
    kind, name = {"captioning": ("caption", "blip_caption"), "retrieval": ("match", "blip_retrieval")}[task]
    parts = small_parts(kind, tmp_path)
    folder = model_of(parts, choose_placement("cpu", "float32")).save(tmp_path / "model")
    model, images, texts = load_model_and_preprocess(name, folder)
    coco["train"].set_processors(images["train"], texts["train"])
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    runner(model, coco, tmp_path / "out", task=task, batch_size_train=2, max_epoch=2).train()
    found = torch.load(tmp_path / "out/checkpoint_1.pth", weights_only=True)["model"]
    assert found.keys() == to_blip(model.network).keys()
    assert not found["visual_encoder.cls_token"].equal(before["vision.class_token"])
    log = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text(encoding="utf-8").splitlines()]
    assert all(math.isfinite(float(entry["train_loss"])) for entry in log[1:])
    assert ("train_loss_itc" in log[1]) == (task == "retrieval")


def test_clip_trains(coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    theirs = write_clip(tmp_path / "clip")
    model, images, texts = load_model_and_preprocess("clip", theirs.folder)
    assert type(images["train"]) is ClipImageTrainProcessor
    coco["train"].set_processors(images["train"], texts["train"])
    runner(model, coco, tmp_path / "out", task="retrieval", batch_size_train=2, max_epoch=1, init_lr=1e-5).train()
    found = torch.load(tmp_path / "out/checkpoint_0.pth", weights_only=True)["model"]
    assert {"visual.proj", "text_projection", "logit_scale"} <= found.keys()


def test_stage_1_trains(matcher: Theirs, coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    model, images, texts = load_model_and_preprocess("blip2", matcher.folder)
    coco["train"].set_processors(images["train"], texts["train"])
    before = model.network.itm_head.weight.clone()
    runner(model, coco, tmp_path / "out", task="image_text_pretrain", accum_grad_iters=2, batch_size_train=2).train()
    assert not model.network.itm_head.weight.equal(before)
    log = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text(encoding="utf-8").splitlines()]
    assert log[1].keys() >= {"train_loss", "train_loss_itc", "train_loss_itm", "train_loss_lm"}


def test_half_types_learn_in_float32(trained: LavisModel, coco: dict[str, LavisDataset], tmp_path: Path) -> None:
    trained.to(torch.bfloat16)
    runner(trained, coco, tmp_path / "out", max_epoch=1).train()
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.bfloat16}
    saved = torch.load(tmp_path / "out/checkpoint_0.pth", weights_only=True)["model"]
    assert saved["query_tokens"].dtype == torch.float32


def test_settings_come_as_lavis_has_them() -> None:
    run = {**RUN, "output_dir": "out"}
    read = RunSettings.read({"run": run})
    assert (read.init_lr, read.warmup_steps, read.train_splits, read.device) == (1e-3, 2, ("train",), None)
    assert read == RunSettings.read(SimpleNamespace(run_cfg=run)) == RunSettings.read(OmegaConf.create({"run": run}))
    assert [read.rate(0, step) for step in range(4)] == pytest.approx([1e-6, 5.005e-4, 1e-3, 1e-3])
    plain = RunSettings(1e-3, 4, 1, "out", lr_sched="constant_lr")
    assert [plain.rate(epoch, 0) for epoch in range(4)] == [1e-3] * 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warm_up": 3}, "no run setting warm_up"),
        ({"init_lr": "fast"}, "could not convert string to float: 'fast'"),
        ({"max_epoch": 1.5}, "1.5 is no whole number"),
        ({"max_epoch": 0}, "max_epoch is 0"),
        ({"lr_sched": "step"}, "no lr_sched 'step' here: use linear_warmup_cosine_lr"),
        ({"evaluate": True}, "`openblip evaluate` does that"),
        ({"valid_splits": ["val"]}, "valid_splits asks"),
        ({"resume_ckpt_path": "a.pth"}, "`openblip train` goes on"),
        ({"batch_size_train": 5}, "4 rows to train on, fewer than batch_size_train 5"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"train_splits": ["dev"]}, "no data set has a split dev"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_told(
    trained: LavisModel, coco: dict[str, LavisDataset], tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        runner(trained, coco, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_told(
    trained: LavisModel,
    coco: dict[str, LavisDataset],
    opt: Theirs,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cfg in ({}, SimpleNamespace(), None):
        with pytest.raises(OptionError, match="cfg says nothing about the run"):
            RunSettings.read(cfg)
    with pytest.raises(OptionError, match="missing 4 required"):
        RunSettings.read({"run": {}})
    with pytest.raises(CheckpointError, match="another image encoder"):
        runner(load_model("blip2_opt", tiny_model_folder), coco, tmp_path)
    with pytest.raises(OptionError, match="no task 'dialogue' here: use captioning"):
        setup_task({"run": {"task": "dialogue"}})
    with pytest.raises(OptionError, match="no runner 'runner_iter' here: use runner_base"):
        registry.get_runner_class("runner_iter")
    assert registry.list_runners() == ["runner_base"] and "captioning" in registry.list_tasks()
    assert "coco_caption" in registry.list_datasets()
    bare = load_dataset("coco_caption")
    with pytest.raises(OptionError, match="set_processors"):
        runner(trained, bare, tmp_path / "out").train()
    matching = load_model("blip2_opt", opt.folder)
    matching.requires_grad_(False)
    with pytest.raises(OptionError, match="nothing of the model learns"):
        runner(matching, coco, tmp_path / "out").train()
    with pytest.raises(OptionError, match="the image encoder or the language model is to learn"):
        runner(matching.requires_grad_(True), coco, tmp_path / "out").train()
    with torch.no_grad():
        trained.network.vision_norm.weight.fill_(math.nan)
    with pytest.raises(OpenBlipError, match="the loss is nan in step 0 of epoch 0"):
        runner(trained, coco, tmp_path / "out").train()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="train on several GPUs with `openblip train`"):
        runner(trained, coco, tmp_path / "out")
