"""Recipes of small runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.loop.trainer import Trainer
from openblip.training.recipe import Recipe
from openblip.training.run import train

EVALUATED = ["epochs=1", "evaluation.data={name: balls, captions: captions.jsonl}", "evaluation.limit=5"]


def write_small_recipe(folder: Path, root: Path, model: Path, **changes: Any) -> Path:
    """A recipe on the images of the fixture `data`, with its features and its output in `folder`."""
    content: dict[str, Any] = {
        "init": model.as_posix(),
        "data_root": root.as_posix(),
        "cache": (folder / "features").as_posix(),
        "output": (folder / "run").as_posix(),
        "data": [{"name": "balls", "captions": "captions.jsonl"}],
        "save_every": 2,
        "threads": 1,
        "device": "cpu",
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 2},
        "monitor": {"tensorboard": False},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def train_until_killed(recipe: Recipe, steps: int) -> None:
    """Train in another process, which is killed once it has made so many steps; a checkpoint has to be there then."""
    child = os.fork()
    if not child:
        step = Trainer._step

        def killed(self: Trainer, *arguments: Any) -> Any:
            if self.state.position.total == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *arguments)

        try:
            Trainer._step = killed  # type: ignore[method-assign]
            train(recipe)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the run ended before it was killed"
    assert (Path(recipe.output) / CHECKPOINT_FILE).exists()
