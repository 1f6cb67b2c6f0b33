"""All benchmarks one after the other: tables, a file of figures for each, and a plot.

    python benchmarks/run.py small                 `make bench`: minutes, no folder of weights needed
    python benchmarks/run.py gpu                   real size on CUDA, in bfloat16 and int8: minutes
    python benchmarks/run.py full                  `make bench-full`: real size, an hour, 24 GB of memory, 22 GB of disk
    [--output runs/bench] [--weights runs/bench/weights] [--only NAME ...] [--rounds 3] [--threads 2] [--data DATA]

Folders of random weights are written first where they are missing (`real_size.py`). Nothing else should run meanwhile.
With --data, what `mini_quality.py` needs, quality is measured, too. A benchmark that fails is told and left out; the
exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

HERE = Path(__file__).parent
MARKS = tuple[float, float]


@dataclass(frozen=True)
class Step:
    """One benchmark.

    Attributes:
        arguments: of a script; one of `real_size.py`'s sizes in braces is the folder of that size, with @8 or @4
            behind it what `openblip quantize` makes of that in so many bits.
        marks: for rows of its figures, what has to be reached and what is hoped for.
        rounds: the script's name for how often it measures; empty where it has none.
    """

    name: str
    arguments: tuple[str, ...]
    marks: Mapping[str, MARKS] = field(default_factory=dict)
    rounds: str = "--rounds"
    threads: bool = True


ANYWHERE = (
    Step("prefix-sharing", ("prefix_sharing.py",)),
    Step("continuous-batching", ("continuous_batching.py", "--requests", "100")),
    Step("matching", ("matching_speed.py",)),
    Step("images", ("image_pipeline.py",)),
    Step("mini-speed", ("mini_speed.py",), rounds="--runs"),
    Step(
        "mini-photos-float32",
        ("mini_throughput.py", "--dtype", "float32", "--batches", "8", "32"),
        {"float32, beam 1, batch 32": (20, 50)},
    ),
    Step(
        "mini-photos-int8",
        ("mini_throughput.py", "--dtype", "int8", "--batches", "8", "32"),
        {"int8, beam 1, batch 32": (20, 50)},
    ),
    Step("mini-agreement", ("agreement.py", "mini"), rounds=""),
)


def of_size(opt: str, t5: str, *, marked: bool) -> tuple[Step, ...]:
    """What needs folders of weights, on those of two sizes.

    Args:
        marked: whether the marks, which are for real size, are to be held against what is found.
    """
    steps = (
        Step(
            "opt-int8",
            ("engine.py", f"{{{opt}}}", "--dtype", "int8"),
            {
                "greedy": (3.2, 4),
                "beam 5": (4.5, 7),
                "8 questions": (9, 14),
                "image encoder": (2.5, 3.5),
            },
        ),
        Step(
            "opt-int8-decode",
            ("engine.py", f"{{{opt}}}", "--dtype", "int8", "--theirs", "none"),
            {"decode": (80, 90)},
        ),
        Step(
            "opt-float32",
            ("engine.py", f"{{{opt}}}", "--dtype", "float32", "--tasks", "greedy,beam 5,8 questions"),
            {"greedy": (1.1, 1.2), "beam 5": (1.7, 2.2), "8 questions": (3, 3.5)},
        ),
        Step(
            "opt-int8-against-bfloat16",
            ("engine.py", f"{{{opt}}}", "--dtype", "int8", "--theirs", "bfloat16", "--tasks", "greedy"),
            {"greedy": (12, 20)},
        ),
        Step("t5-int8", ("engine.py", f"{{{t5}}}", "--dtype", "int8", "--tasks", "greedy"), {"greedy": (3, 4)}),
        Step(
            "memory",
            ("peak_memory.py", f"{{{opt}}}", "--theirs"),
            {"peak memory, int8": (4.8, 4.3), "peak memory, int4": (3.2, 2.6)},
            rounds="",
            threads=False,
        ),
        Step(
            "load",
            ("load_time.py", f"{{{opt}}}", "--folders", f"{{{opt}@8}}", f"{{{opt}@4}}"),
            {"load, int8": (1, 2), "load, int8 folder": (1, 2)},
        ),
        Step("agreement", ("agreement.py", f"{{{opt}}}"), rounds=""),
    )
    return steps if marked else tuple(Step(s.name, s.arguments, {}, s.rounds, s.threads) for s in steps)


def quality(data: str) -> tuple[Step, ...]:
    return tuple(
        Step(
            f"mini-quality-{dtype}",
            ("mini_quality.py", "--data", data, "--only", "captions", "--dtype", dtype),
            rounds="",
            threads=False,
        )
        for dtype in ("float32", "int8", "int4")
    )


def training(*size: str) -> Step:
    marks = {"stage 1 step, ours": (1.5, 1.5), "stage 2 step, cached": (3.0, 3.0)}
    return Step("training-step", ("stage1_step.py", *size), marks)


def pairs(*size: str) -> Step:
    marks = {"BLIP retrieval step, wall": (1.3, 2.0), "BLIP retrieval step, processor": (1.3, 2.0)}
    return Step("blip-retrieval-step", ("blip_retrieval_step.py", *size), marks)


def on_gpu(name: str, size: str, dtype: str) -> Step:
    arguments = ("engine.py", f"{{{size}}}", "--device", "cuda", "--dtype", dtype, "--theirs", "bfloat16")
    marks = {"greedy": (6.0, 10.0), "8 questions": (8.0, 8.0), "batch of 64": (2.0, 4.0), "decode": (60.0, 80.0)}
    return Step(name, (*arguments, "--tasks", "greedy,8 questions,batch of 64"), marks)


SIZES = {
    "tiny": of_size("tiny", "tiny", marked=False),
    "small": (
        *ANYWHERE,
        training("--small"),
        pairs("--small", "--image-size", "128"),
        *of_size("small", "small-t5", marked=False),
    ),
    "gpu": (
        on_gpu("gpu-opt", "opt", "bfloat16"),
        on_gpu("gpu-opt-int8", "opt", "int8"),
        on_gpu("gpu-t5", "t5", "bfloat16"),
    ),
    "full": (*ANYWHERE, training("--batch", "4"), pairs("--batch", "4"), *of_size("opt", "t5", marked=True)),
}


def weights_of(step: Step, folder: Path) -> list[str]:
    """A step's arguments with the folders it asks for, which are written if they are missing."""
    arguments = []
    for argument in step.arguments:
        if argument.startswith("{"):
            size, _, bits = argument.strip("{}").partition("@")
            place = folder / size
            subprocess.run([sys.executable, str(HERE / "real_size.py"), size, str(place)], check=True)
            argument = str(place)
            if bits:
                argument = f"{place}-int{bits}"
                if not Path(argument).is_dir():
                    command = [sys.executable, "-m", "openblip", "quantize", str(place), argument, "--bits", bits]
                    subprocess.run(command, check=True)
        arguments.append(argument)
    return arguments


def mark(path: Path, marks: Mapping[str, MARKS]) -> None:
    """Write bars and goals beside the figures."""
    if not path.is_file():
        return  # a script that writes no rows
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content.get("rows", ()):
        if row["name"] in marks:
            row["bar"], row["goal"] = marks[row["name"]]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--weights", type=Path, help="where folders of random weights are kept")
    parser.add_argument("--only", nargs="+", help="names of benchmarks, as their files have them")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", help="the folder that mini_quality.py needs")
    options = parser.parse_args()
    if options.size == "gpu" and not torch.cuda.is_available():
        parser.error("this PyTorch sees no GPU")
    output: Path = options.output / options.size
    steps = SIZES[options.size] + (quality(options.data) if options.data else ())
    unknown = set(options.only or ()) - {step.name for step in steps}
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: {', '.join(step.name for step in steps)}")
    failed = []
    for step in steps:
        if options.only and step.name not in options.only:
            continue
        print(f"\n## {step.name}\n", flush=True)
        found = output / f"{step.name}.json"
        try:
            arguments = weights_of(step, options.weights or options.output / "weights")
            command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--json", str(found)]
            command += [step.rounds, str(options.rounds)] if step.rounds and options.rounds else []
            command += ["--threads", str(options.threads)] if step.threads else []
            subprocess.run(command, check=True)
            mark(found, step.marks)
        except subprocess.CalledProcessError as error:
            print(f"{step.name} failed with exit code {error.returncode}", file=sys.stderr, flush=True)
            failed.append(step.name)
    drawn = subprocess.run([sys.executable, str(HERE / "plot.py"), str(output)], check=False)
    sys.exit(1 if failed or drawn.returncode else 0)


if __name__ == "__main__":
    main()
