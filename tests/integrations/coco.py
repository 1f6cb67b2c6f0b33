"""COCO captions as LAVIS keeps them, with other images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

TEXTS = ["A woman wearing a net on her head cutting a cake. ", "Two dogs play.", "A red ball!", "A dog runs, and runs."]


def write_coco(home: Path, image_paths: Sequence[Path]) -> Path:
    """Four captions to train on and an image each to validate and test on; returns the folder of images."""
    images = home / "coco/images"
    annotations = home / "coco/annotations"
    (images / "val2014").mkdir(parents=True)
    annotations.mkdir(parents=True)
    names = []
    for number, image_path in enumerate(image_paths):
        names.append(f"val2014/COCO_val2014_{number:012}.png")
        shutil.copy(image_path, images / names[-1])
    rows = [
        {"caption": text, "image": name, "image_id": f"coco_{number}"}
        for number, (text, name) in enumerate(zip(TEXTS, names, strict=False))
    ]
    (annotations / "coco_karpathy_train.json").write_text(json.dumps(rows), encoding="utf-8")
    for split in ("val", "test"):
        held_out = [{"image": names[-1], "caption": ["One.", "Two."]}]
        (annotations / f"coco_karpathy_{split}.json").write_text(json.dumps(held_out), encoding="utf-8")
    return images
