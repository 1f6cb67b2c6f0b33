"""LAVIS' `runner_base` and the tasks it trains by: a loop over a model's own loss, with LAVIS' run settings.

>>> from openblip.integrations.lavis import registry  # was: from lavis.common.registry import registry
>>> registry.get_runner_class("runner_base").__name__
'RunnerBase'

`openblip train` does more: it goes on after a kill, works on several GPUs, evaluates, keeps features on disk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from openblip.checkpoints.tensors.writing import save_pickled
from openblip.devices import choose_placement
from openblip.errors import OpenBlipError, OptionError
from openblip.integrations.lavis.datasets import LavisDataset, Row
from openblip.integrations.lavis.models import LavisModel
from openblip.integrations.lavis.outputs import Samples
from openblip.saving import naming
from openblip.training.loop.optim import make_optimizer, set_rate, single_vectors
from openblip.training.recipe import OptimizerSection

Datasets: TypeAlias = Mapping[str, Mapping[str, LavisDataset]]

ELSEWHERE = {
    "evaluate": "`openblip evaluate` does that",
    "valid_splits": "evaluate with `openblip evaluate`",
    "test_splits": "evaluate with `openblip evaluate`",
    "resume_ckpt_path": "`openblip train` goes on with a run that was stopped",
}
"""Settings that ask for what this runner does not do."""
MEANINGLESS = {
    *("batch_size_eval", "max_len", "min_len", "num_beams", "inference_method", "use_dist_eval_sampler", "val_freq"),
    *("dist_url", "dist_backend", "world_size", "gpu", "rank", "log_freq", "save_freq", "save_last", "task", "amp"),
}
"""Settings of evaluation, of several processes, of the console; and what the model or the task says here."""
SCHEDULES = ("linear_warmup_cosine_lr", "constant_lr")


@dataclass(frozen=True)
class RunSettings:
    """LAVIS' run settings, with LAVIS' defaults.

    Attributes:
        init_lr, min_lr: the rate falls from one to the other by a cosine of epochs.
        warmup_lr, warmup_steps: in the first epoch the rate rises from one to `init_lr` in so many steps; LAVIS'
            default of -1 begins at `init_lr`.
        lr_sched: "linear_warmup_cosine_lr" or "constant_lr".
        accum_grad_iters: batches a step learns from.
        output_dir: where log.txt and checkpoints go.
        device: None is where the model is.
        distributed: LAVIS' files say true; one process is all there may be.
    """

    init_lr: float
    max_epoch: int
    batch_size_train: int
    output_dir: str
    min_lr: float = 0.0
    warmup_lr: float = -1.0
    warmup_steps: int = 0
    weight_decay: float = 0.05
    beta2: float = 0.999
    lr_sched: str = "linear_warmup_cosine_lr"
    accum_grad_iters: int = 1
    num_workers: int = 0
    seed: int = 42
    train_splits: tuple[str, ...] = ("train",)
    device: str | None = None
    distributed: bool = False

    @classmethod
    def read(cls, cfg: Any) -> RunSettings:
        """From LAVIS' `Config`, whatever has its `run_cfg`, or a mapping with the "run" of LAVIS' YAML files.

        Raises:
            OptionError: a setting is unknown, missing or of the wrong kind, or asks for what this runner does not do.
        """
        section = run_section(cfg)
        for name, instead in ELSEWHERE.items():
            if section.pop(name, None):
                raise OptionError(f"the runner does not do what the run setting {name} asks: leave it out, {instead}")
        kinds = {field.name: str(field.type) for field in fields(cls)}
        unknown = sorted(set(section) - kinds.keys() - MEANINGLESS)
        if unknown:
            raise OptionError(f"the runner has no run setting {', '.join(unknown)}: it has {', '.join(kinds)}")
        try:
            settings = cls(**{name: _converted(section[name], kinds[name]) for name in kinds if name in section})
        except (TypeError, ValueError) as error:
            reason = str(error).removeprefix("RunSettings.__init__() ")
            raise OptionError(f"the run settings cannot be used ({reason}): write them as in LAVIS' files") from None
        settings.check()
        return settings

    def check(self) -> None:
        if self.lr_sched not in SCHEDULES:
            raise OptionError(f"there is no lr_sched {self.lr_sched!r} here: use {', '.join(SCHEDULES)}")
        for name in ("max_epoch", "batch_size_train", "accum_grad_iters"):
            if getattr(self, name) < 1:
                raise OptionError(f"the run setting {name} is {getattr(self, name)}: give at least 1")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise OptionError("the runner works in one process: train on several GPUs with `openblip train`")

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of a batch, numbered within its epoch."""
        if epoch == 0:
            start = self.warmup_lr if self.warmup_lr >= 0 else self.init_lr
            return min(self.init_lr, start + (self.init_lr - start) * step / max(1, self.warmup_steps))
        if self.lr_sched == "constant_lr":
            return self.init_lr
        return self.min_lr + (self.init_lr - self.min_lr) * (1 + math.cos(math.pi * epoch / self.max_epoch)) / 2


def run_section(cfg: Any) -> dict[str, Any]:
    """The run settings as they are given."""
    section = cfg.get("run") if isinstance(cfg, Mapping) else getattr(cfg, "run_cfg", None)
    if isinstance(section, Mapping):
        return dict(section)
    raise OptionError('cfg says nothing about the run: give a mapping with "run", or what has a run_cfg')


def _converted(value: Any, kind: str) -> Any:
    """YAML reads 1e-5 as a text, as LAVIS knows."""
    if kind == "float":
        return float(value)
    if kind == "int":
        if int(value) != float(value):
            raise ValueError(f"{value!r} is no whole number")
        return int(value)
    if kind.startswith("tuple"):
        return tuple(value)
    return value if value is None or kind == "bool" else str(value)


class BaseTask:
    """What is done with a batch."""

    @classmethod
    def setup_task(cls, cfg: Any = None) -> BaseTask:
        return cls()

    def train_step(self, model: LavisModel, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that is learnt from, and all losses by name."""
        output = model(samples)
        losses = vars(output) if is_dataclass(output) else output
        if not isinstance(losses, Mapping) or "loss" not in losses:
            raise OptionError(
                f"a {type(model).__name__} has no loss to train by: use one that has, such as blip_caption or blip2_opt"
            )
        named = {name: value for name, value in losses.items() if "loss" in name and value is not None}
        return named["loss"], named


class CaptionTask(BaseTask):
    """LAVIS' "captioning"."""


class ImageTextPretrainTask(BaseTask):
    """LAVIS' "image_text_pretrain"."""


class RetrievalTask(BaseTask):
    """LAVIS' "retrieval"."""


class VQATask(BaseTask):
    """LAVIS' "vqa"."""


class MultimodalClassificationTask(BaseTask):
    """LAVIS' "multimodal_classification"."""


class RunnerBase:
    """LAVIS' `runner_base`, for training: every epoch leaves `checkpoint_N.pth` and a line of log.txt.

    Checkpoints have LAVIS' layout: of BLIP-2 all but the frozen image encoder and language model, of BLIP no momentum
    copies. `load_model` takes one as its `checkpoint`, with a name of the zoo.

    As in LAVIS, AdamW's weights that are matrices decay, gradients are not clipped, and batches that are not full are
    left out. What learns has float32 weights; frozen parts keep the type that `load_model` chose.

    Attributes:
        output_dir: the folder, `job_id` included; model, task, datasets: as given.
    """

    def __init__(self, cfg: Any, task: BaseTask, model: LavisModel, datasets: Datasets, job_id: str = "") -> None:
        """
        Args:
            cfg: see `RunSettings.read`.
            task: of `registry.get_task_class`, or what has its `train_step`.
            model: its learning parts have gradients, as `load_model` leaves them.
            datasets: by name, each by split, as `{"coco_caption": load_dataset("coco_caption")}`; they need processors.

        Raises:
            OptionError: the settings or the data sets cannot be used.
            CheckpointError: LAVIS has no layout for this model.
        """
        self.settings = RunSettings.read(cfg)
        self.task, self.model, self.datasets = task, model, datasets
        self.output_dir = Path(self.settings.output_dir).expanduser() / job_id
        if self.settings.device is not None:
            model.to(choose_placement(self.settings.device).device)
        model.checkpoint()  # better refused now than after an epoch
        self._rows: ConcatDataset[Row | None] = ConcatDataset(self._training_sets())
        if len(self._rows) < self.settings.batch_size_train:
            raise OptionError(
                f"there are {len(self._rows)} rows to train on, fewer than batch_size_train "
                f"{self.settings.batch_size_train}: lower it"
            )

    def train(self) -> None:
        """Train to the end.

        Raises:
            OptionError: nothing of the model learns, or what LAVIS freezes does; or images went through no processor.
            OpenBlipError: a loss is not finite.
        """
        settings, model = self.settings, self.model
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not learning:
            raise OptionError("nothing of the model learns: leave gradients as load_model sets them")
        frozen = {id(parameter) for module in model.frozen() for parameter in module.parameters()}
        if any(id(parameter) in frozen for parameter in learning.values()):
            raise OptionError(
                "the image encoder or the language model is to learn, too: use `openblip train` with train_vision or "
                "train_decoder, or freeze them as load_model does"
            )
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._log({"run": vars(settings)})
        torch.manual_seed(settings.seed)
        model.train()
        dtypes = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
        kept = {name: parameter.dtype for name, parameter in learning.items()}
        for parameter in learning.values():
            parameter.data = parameter.data.float()
        section = OptimizerSection(
            lr=settings.init_lr, weight_decay=settings.weight_decay, beta1=0.9, beta2=settings.beta2
        )
        optimizer = make_optimizer(learning, section, single_vectors(model))
        half = next((dtype for dtype in dtypes if dtype in (torch.float16, torch.bfloat16)), None)
        scaler = torch.amp.GradScaler(model.device.type, enabled=half is torch.float16)
        try:
            for epoch in range(settings.max_epoch):
                self._epoch(epoch, optimizer, scaler, half)
                self._save(epoch)
        finally:
            for name, parameter in learning.items():
                parameter.data = parameter.data.to(kept[name])

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, half: torch.dtype | None
    ) -> None:
        settings = self.settings
        sums: dict[str, float] = {}
        count, rate = 0, 0.0
        steps = len(self._rows) // settings.batch_size_train
        for step, samples in enumerate(self._batches()):
            samples.update({"epoch": epoch, "iters": step, "num_iters_per_epoch": steps})
            rate = settings.rate(epoch, step)
            set_rate(optimizer, rate)
            with torch.autocast(self.model.device.type, half, enabled=half is not None):
                loss, named = self.task.train_step(self.model, samples)
            if not torch.isfinite(loss):
                raise OpenBlipError(f"the loss is {loss.item()} in step {step} of epoch {epoch}: lower init_lr")
            scaler.scale(loss / settings.accum_grad_iters).backward()  # type: ignore[no-untyped-call]
            if (step + 1) % settings.accum_grad_iters == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            for name, value in named.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            count += 1
        if not count:
            raise OpenBlipError("none of the images to train on can be read: check where the data sets look for them")
        means = {f"train_{name}": f"{value / count:.3f}" for name, value in sums.items()}
        self._log({"epoch": epoch, "train_lr": f"{rate:.3g}", **means})

    def _training_sets(self) -> list[LavisDataset]:
        found = []
        for name, splits in self.datasets.items():
            if not isinstance(splits, Mapping):
                raise OptionError(f'datasets["{name}"] is no mapping of splits: give {{"{name}": load_dataset(...)}}')
            found += [splits[split] for split in self.settings.train_splits if split in splits]
        if not found:
            raise OptionError(f"no data set has a split {', '.join(self.settings.train_splits)}: nothing can be learnt")
        return found

    def _batches(self) -> Iterator[Samples]:
        sets = cast("list[LavisDataset]", self._rows.datasets)
        loader = DataLoader(
            self._rows,
            batch_size=self.settings.batch_size_train,
            shuffle=True,
            drop_last=True,
            num_workers=self.settings.num_workers,
            collate_fn=sets[0].collater,
        )
        for batch in loader:
            if batch:  # else none of its images can be read
                yield _on_device(batch, self.model.device)

    def _save(self, epoch: int) -> None:
        state = self.model.checkpoint()
        path = self.output_dir / f"checkpoint_{epoch}.pth"
        save_pickled({"model": {name: tensor.cpu().clone() for name, tensor in state.items()}, "epoch": epoch}, path)

    def _log(self, entry: Mapping[str, Any]) -> None:
        path = self.output_dir / "log.txt"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _on_device(batch: Row, device: torch.device) -> Samples:
    if not isinstance(batch.get("image", batch.get("image0")), Tensor):
        raise OptionError("the data sets give images as they are: tell them how, dataset.set_processors(image, text)")
    if "image_id" in batch:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(batch["image_id"]))}
        batch = {**batch, "image_id": torch.tensor([numbers[name] for name in batch["image_id"]])}
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return cast(Samples, moved)


RUNNERS: dict[str, type[RunnerBase]] = {"runner_base": RunnerBase}
TASKS: dict[str, type[BaseTask]] = {
    "captioning": CaptionTask,
    "image_text_pretrain": ImageTextPretrainTask,
    "retrieval": RetrievalTask,
    "vqa": VQATask,
    "multimodal_classification": MultimodalClassificationTask,
}
