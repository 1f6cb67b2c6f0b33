"""Find the first tensor that is not finite when a loss is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from openblip.saving import naming, write_text
from openblip.training.input.batches import BatchRow
from openblip.training.tasks.task import Views

FOLDER = "bad_batch"


def first_nonfinite(network: nn.Module, views: Views | None, again: Callable[[], object]) -> str:
    """The first value that is not finite: an input, a weight, or an output of a layer as `again` repeats the step."""
    for name, tensor in _inputs(views).items():
        if not _finite(tensor):
            return f"the {name} that came in"
    for name, parameter in network.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and any(not _finite(tensor) for tensor in _tensors(output)):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad():
            again()
    finally:
        for handle in handles:
            handle.remove()
    return f"what {found[0]} gives" if found else "the loss itself"


def save_batch(folder: Path, batch: Sequence[BatchRow], views: Views | None, facts: Mapping[str, object]) -> Path:
    """Save a batch for inspection: its images and texts as JSON, its pixels or features as tensors."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "image": str(row.pair.image),
            "view": row.view,
            "captions": list(row.pair.captions),
            "questions": [[question.question, question.answer] for question in row.pair.questions],
        }
        for row in batch
    ]
    write_text(place / "batch.json", json.dumps({**facts, "rows": rows}, indent=1, ensure_ascii=False))
    inputs = {name: tensor.cpu().contiguous() for name, tensor in _inputs(views).items()}
    if inputs:
        with naming(place / "views.safetensors"):
            save_file(inputs, place / "views.safetensors")
    return place


def _inputs(views: Views | None) -> dict[str, Tensor]:
    found = {} if views is None else {"patches": views.patches, "pixels": views.pixels}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
