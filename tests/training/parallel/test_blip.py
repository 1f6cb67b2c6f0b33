"""Two processes train the BLIP that one trains, though their texts and answers differ in number and length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openblip.checkpoints.openblip.folder import save_native
from openblip.training.recipe import load_recipe
from openblip.training.run import train
from tests.models.blip_models import small_parts
from tests.training.parallel.test_processes import together
from tests.training.recipes import write_small_recipe

CAPTIONS = ["a ball", "two children play with a dog on the beach", "the cat", "a photo of a red ball"]
ANSWERS = [["red"], ["red", "red", "a red ball"], ["two", "one", "two children", "two"], ["dog"]]


@pytest.mark.parametrize(
    ("stage", "extras"), [("caption", ["train_vision=true", "cache=null"]), ("vqa", ["parallel=fsdp", "ema=0.5"])]
)
def test_two_processes_train_the_model_that_one_trains(
    stage: str, extras: list[str], data: Path, tmp_path: Path
) -> None:
    images = sorted((data / "images").iterdir())
    rows = [{"image": f"images/{image.name}", "captions": [CAPTIONS[n % 4]]} for n, image in enumerate(images)]
    (data / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"image": f"images/{image.name}", "question": CAPTIONS[(n + 1) % 4], "answers": ANSWERS[n % 4]}
        for n, image in enumerate(images)
    ]
    (data / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = small_parts({"caption": "caption", "vqa": "answer"}[stage], tmp_path)
    save_native(model, tmp_path / "start")
    source = (
        {"name": "balls", "captions": "captions.jsonl"}
        if stage == "caption"
        else {"name": "q", "questions": "vqa.jsonl"}
    )
    path = str(
        write_small_recipe(
            tmp_path, data, tmp_path / "start", stage=stage, data=[source], epochs=2, batch_size=6, save_every=1000
        )
    )
    one = train(
        load_recipe(Path(path), [f"output={tmp_path / 'one'}", *[extra for extra in extras if "fsdp" not in extra]])
    )
    together(["-m", "openblip", "train", path, f"output={tmp_path / 'two'}", *extras], 2)
    alone, pair = (load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two"))
    start = load_file(tmp_path / "start/model.safetensors")
    moved = [name for name in start if not torch.equal(start[name], alone[name])]
    assert len(moved) > 40 and any(name.startswith("vision.") for name in moved) == (stage == "caption")
    for name, value in alone.items():
        if name.endswith(("key.bias", "qkv.bias")):
            continue  # of the keys' bias the gradient is rounding alone
        gap = (pair[name].double() - value.double()).abs()
        assert gap.max().item() <= 2e-2 and gap.mean().item() <= 2e-5, (name, gap.max().item(), gap.mean().item())
