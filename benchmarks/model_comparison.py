"""Models side by side, measured: size, memory, speed, and scores of the evaluations that are asked for.

    python -m benchmarks.model_comparison mini blip2_opt/pretrain_opt2.7b
    python -m benchmarks.model_comparison mini --dtypes float32 int8 --images 32
    python -m benchmarks.model_comparison mini --recipes recipes/evaluate/mini_captions.yaml -- data_root=data limit=100

Each model has a process of its own, so that peaks of memory are its own: the whole process on the CPU, what PyTorch
took on a GPU. Times are medians: of captions and answers of one image at a time, as a user waits for them (beam search
as the model has it), and of captions in batches. The images are drawn, all different, 640x480. Scores need --recipes:
each recipe is run for each model, and its first metrics become columns. What a model cannot do stays empty.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from openblip.errors import OpenBlipError

MAIN_METRICS = {
    "captions": ("cider", "bleu_4"),
    "questions": ("accuracy",),
    "retrieval": ("text_to_image_at_1", "image_to_text_at_1"),
    "classification": ("accuracy",),
}
QUESTIONS = ("what is this?", "what color is it?", "how many are there?", "where is it?")


@dataclass
class Measured:
    """One row; None is what the model cannot do.

    Attributes:
        millions: of weights; megabytes: that they take in memory; peak: in megabytes, of loading and using it.
        load, caption, answer: seconds; batched: captions a second, eight images at a time.
        scores: of recipes, by column.
    """

    model: str
    number_format: str
    vision: str
    language: str
    millions: float
    megabytes: float
    load: float
    peak: float = 0.0
    caption: float | None = None
    batched: float | None = None
    answer: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


def measure(name: str, dtype: str | None, device: str | None, count: int) -> Measured:
    """Load a model and use it. To be run in a process of its own."""
    import torch
    from PIL import Image

    import openblip
    from openblip.evaluation.run import number_format

    images = [Image.effect_noise((640, 480), 40 + number).convert("RGB") for number in range(count)]
    start = time.perf_counter()
    model = openblip.load(name, device=device, dtype=dtype, image_cache=0)
    row = Measured(
        model=model.name,
        number_format=number_format(model),
        vision=f"{type(model.network.vision).__name__} {model.parts.transform.image_size} px",
        language="" if model.parts.tokenizer is None else type(model.network.language_model).__name__,
        millions=count_weights(model) / 1e6,
        megabytes=sum(
            tensor.numel() * tensor.element_size() for tensor in (*model.network.parameters(), *model.network.buffers())
        )
        / 1e6,
        load=time.perf_counter() - start,
    )
    if model.parts.tokenizer is not None:
        model.caption(images[0])  # the first one warms up
        row.caption = median_seconds(lambda image: model.caption(image), images)
        row.answer = median_seconds(lambda image: model.ask(image, list(QUESTIONS)), images) / len(QUESTIONS)
        start = time.perf_counter()
        for _ in model.caption_many(images, batch_size=8):
            pass
        row.batched = len(images) / (time.perf_counter() - start)
    else:
        model.match(images[0], ["a dog", "a cat"])
    if model.placement.device.type == "cuda":
        row.peak = torch.cuda.max_memory_allocated() / 1e6
    else:
        row.peak = peak_of_process() / 1e6
    return row


def count_weights(model: Any) -> int:
    """Numbers that were learnt, however many bits they are kept in."""
    import torch

    from openblip.nn.blip2 import Blip2Network

    if model.parts.external is not None:
        return sum(parameter.numel() for parameter in model.network.parameters())
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Blip2Network(model.network.config).parameters())


def median_seconds(action: Any, images: Sequence[Any]) -> float:
    seconds = []
    for image in images:
        start = time.perf_counter()
        action(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_of_process() -> float:
    """Bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def evaluate(
    recipe: Path, folder: Path, name: str, dtype: str | None, device: str | None, overrides: Sequence[str]
) -> dict[str, float]:
    """The main metrics of a recipe, run with this model instead of its own, in a folder of its own."""
    from openblip.evaluation.recipe import load_evaluation
    from openblip.evaluation.report import NAMES
    from openblip.evaluation.run import evaluate as run

    resolved = load_evaluation(recipe, overrides)
    resolved.model, resolved.dtype, resolved.device = name, dtype or resolved.dtype, device or resolved.device
    resolved.output = str(folder / "-".join(part for part in (recipe.stem, Path(name).name, dtype) if part))
    metrics = run(resolved).found.metrics
    return {f"{resolved.data.name}: {NAMES[key]}": metrics[key] for key in MAIN_METRICS[resolved.task.value]}


def table(rows: Sequence[Measured]) -> str:
    """Markdown."""
    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    heads = [
        *("model", "numbers", "image encoder", "language model", "weights, M", "weights, MB", "peak, MB", "load, s"),
        *("caption, s", "captions/s, by 8", "answer, s", *scores),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            row.model,
            row.number_format,
            row.vision,
            row.language,
            f"{row.millions:,.0f}",
            f"{row.megabytes:,.0f}",
        ]
        cells += [f"{row.peak:,.0f}" if row.peak else "", f"{row.load:.1f}"]
        cells += ["" if value is None else f"{value:.3g}" for value in (row.caption, row.batched, row.answer)]
        cells += [f"{100 * row.scores[name]:.1f}" if name in row.scores else "" for name in scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a name of `openblip models`, or a model folder")
    parser.add_argument("--dtypes", nargs="+", help="number formats; by default what the device runs fast")
    parser.add_argument("--device", help="cpu, cuda or cuda:1")
    parser.add_argument("--images", type=int, default=16, help="to be captioned and asked about")
    parser.add_argument("--recipes", nargs="+", type=Path, default=[], help="of evaluations, files in recipes/evaluate")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"), help="for what the recipes write")
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")
    parser.add_argument("--measure-one", action="store_true", help=argparse.SUPPRESS)
    own, _, overrides = split_at_dashes(sys.argv[1:])
    options = parser.parse_args(own)
    dtypes = options.dtypes or [None]
    if options.measure_one:
        print(json.dumps(asdict(measure(options.models[0], dtypes[0], options.device, options.images))))
        return
    console = Console(stderr=True)
    rows = []
    for name in options.models:
        for dtype in dtypes:
            with console.status(f"{name} {dtype or ''}"):
                row = measure_apart(name, dtype, options.device, options.images)
                for recipe in options.recipes:
                    row.scores |= evaluate(recipe, options.output, name, dtype, options.device, overrides)
            rows.append(row)
    print(f"Python {platform.python_version()}, {platform.machine()}, {options.images} images\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def measure_apart(name: str, dtype: str | None, device: str | None, count: int) -> Measured:
    """`measure` in a new process. Raises SystemExit with its last words when it fails."""
    command = [sys.executable, "-m", "benchmarks.model_comparison", name, "--images", str(count), "--measure-one"]
    command += ["--dtypes", dtype] if dtype else []
    command += ["--device", device] if device else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Arguments before "--", and those after it, which are overrides of recipes."""
    if "--" not in arguments:
        return list(arguments), "", []
    place = list(arguments).index("--")
    return list(arguments[:place]), "--", list(arguments[place + 1 :])


if __name__ == "__main__":
    try:
        main()
    except OpenBlipError as error:
        raise SystemExit(f"error: {error}") from error
