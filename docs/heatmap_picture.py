"""Draw docs/heatmap.jpg, where `mini` looks in photos of examples/: `python docs/heatmap_picture.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import openblip

ROOT = Path(__file__).parents[1]
SHOWN = {"000000377575": "a dog", "000000551780": "a clock", "000000174375": "a man playing tennis"}
"""Photos, and the text of which each shows where it is."""
HEIGHT, GAP = 200, 6


def draw() -> Image.Image:
    """Each photo, and behind it the same photo under its map."""
    model = openblip.load("mini", dtype="float32")
    images = []
    for name, text in SHOWN.items():
        photo = openblip.load_image(ROOT / "examples" / f"{name}.jpg")
        images += [photo, openblip.draw_heatmap(photo, model.heatmap(photo, text))]
    images = [image.resize((round(image.width * HEIGHT / image.height), HEIGHT)) for image in images]
    row = Image.new("RGB", (sum(image.width + GAP for image in images) - GAP, HEIGHT), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


if __name__ == "__main__":
    draw().save(ROOT / "docs" / "heatmap.jpg", quality=85, optimize=True)
