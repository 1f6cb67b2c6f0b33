"""This tree against another build of OpenBLIP: start, load, captions, answers, matches, vectors, the engine.

    python benchmarks/against_build.py [REVISION] [--rounds 5] [--repeats 5] [--threads 1] [--only NAME ...]

REVISION is any revision of this repository, or the folder of another checkout; by default the tag before-1.0, the tree
before it was restructured. It is checked out into a temporary folder. Each round starts a fresh process for each build,
with PYTHONPATH saying which one it imports; the two then take turns, one call at a time, each call with a new photo, so
that a load on the machine that comes and goes meets both. Only the first load in a process counts, so a round also
starts `--repeats` pairs of processes that load and end. Ctrl-C shows what was measured so far. Texts have a fixed
number of tokens, so both builds do the same work, but for a caption with the model's own options, which are whatever a
build chooses.

All times are CPU time: user and system, all threads. The table has medians over all rounds; the median and quartiles
of the ratio of two calls that followed one another (this tree by the other); and the ratio of the two lowest times,
which a load on the machine disturbs least. Something counts as slower if the median and the lowest times agree on it.

"real size" is blip2-opt-2.7b with random weights and `--depth` layers of each of its three parts: layers are alike, so
the ratio is that of the whole.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mini_speed import synthetic_jpeg

ROOT = Path(__file__).parents[1]
BAR = 1.03
MATCHED = [f"a {thing} on the grass" for thing in ("dog", "red ball", "child with a kite", "horse", "bicycle")]
ASKED = ["what is it?", "what color is it?", "where is it?"]
TOKENS, ANSWER_TOKENS, EMBEDDED = 12, 4, 16
NEW_NAMES = {"num_beams": "beams", "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""What a build from before these names has instead."""


class Worker:
    """What runs in a process of its own, with one of the builds: it does what it is told, line by line."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.name, self.dtype = model, dtype
        self.model: Any = None

    def load(self, _: int) -> Callable[[], object]:
        def work() -> None:
            import openblip

            self.model = openblip.load(self.name, dtype=self.dtype, device="cpu")

        return work

    def caption(self, number: int, beams: int) -> Callable[[], object]:
        image, options = synthetic_jpeg(seed=number), self.options(beams, TOKENS)
        return lambda: self.model.caption(image, **options)

    def caption_as_usual(self, number: int) -> Callable[[], object]:
        image = synthetic_jpeg(seed=number)
        return lambda: self.model.caption(image)

    def ask(self, number: int) -> Callable[[], object]:
        image, options = synthetic_jpeg(seed=number), self.options(1, ANSWER_TOKENS)
        return lambda: self.model.ask(image, ASKED, **options)

    def match(self, number: int) -> Callable[[], object]:
        image = synthetic_jpeg(seed=number)
        return lambda: self.model.match(image, MATCHED)

    def embed(self, number: int) -> Callable[[], object]:
        images = [synthetic_jpeg(seed=EMBEDDED * number + place) for place in range(EMBEDDED)]
        return lambda: self.model.embed_images(images)

    def options(self, beams: int, tokens: int) -> dict[str, Any]:
        wanted = {"num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens}
        # What is a default today may not be known to the other build.
        return self.known(wanted) | ({"no_repeat_words": False} if "no_repeat_words" in self.names() else {})

    def known(self, wanted: dict[str, int]) -> dict[str, int]:
        return {name if name in self.names() else NEW_NAMES[name]: value for name, value in wanted.items()}

    @staticmethod
    def names() -> set[str]:
        for place in ("openblip.generation.options", "openblip.options"):
            with suppress(ImportError, AttributeError):
                return set(importlib.import_module(place).TextOptions.__annotations__)
        return set()

    def serve(self) -> None:
        calls: dict[str, Callable[[int], Callable[[], object]]] = {
            "load": self.load,
            "first caption": lambda number: self.caption(number, 5),
            "caption, 5 beams": lambda number: self.caption(number, 5),
            "caption, greedy": lambda number: self.caption(number, 1),
            "caption, the model's own options": self.caption_as_usual,
            "ask, 3 questions": self.ask,
            "match, 1 image, 5 texts": self.match,
            f"embed, {EMBEDDED} images": self.embed,
        }
        for line in sys.stdin:
            name, number = json.loads(line)
            work = calls[name](number)
            start = time.process_time()
            work()
            print(json.dumps(time.process_time() - start), flush=True)


class Build:
    """A build in a process of its own."""

    def __init__(self, source: Path, model: str, dtype: str, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", model, dtype, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, env=environment(source, threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, name: str, number: int) -> float:
        """CPU seconds of one call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, number]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended at {name}")  # type: ignore[arg-type]
        return float(json.loads(line))

    def end(self) -> None:
        self.process.communicate()


def environment(source: Path, threads: int) -> dict[str, str]:
    # An installed package has its bytecode; without it, starting would measure the length of the source.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return own | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}


def run_command(source: Path, arguments: list[str]) -> float:
    """CPU seconds of a whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment(source, 1), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The package's source folder at a revision, or in another checkout."""
    if (Path(revision) / "src" / "openblip").is_dir():
        yield Path(revision).resolve() / "src"
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "build"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), revision], check=True)
        try:
            yield place / "src"
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


class Comparison:
    """Calls of both builds, which take turns."""

    def __init__(self, ours: Path, theirs: Path) -> None:
        self.sources = {"ours": ours, "theirs": theirs}
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._turns = 0

    def turn(self, name: str, work: Callable[[str], float]) -> None:
        """Both do `work`; who begins changes."""
        self._turns += 1
        order = ["ours", "theirs"] if self._turns % 2 else ["theirs", "ours"]
        found = {side: work(side) for side in order}
        if name:
            self.seconds[name].append((found["ours"], found["theirs"]))

    def starts(self, repeats: int) -> None:
        commands = {"`import openblip`": ["-c", "import openblip"], "`openblip --help`": ["-m", "openblip", "--help"]}
        for count in range(repeats + 1):
            for name, arguments in commands.items():
                # The first one compiles the modules.
                self.turn(name if count else "", partial(self._command, arguments))

    def _command(self, arguments: list[str], side: str) -> float:
        return run_command(self.sources[side], arguments)

    def calls(
        self, title: str, model: str, dtype: str, tasks: list[str], repeats: int, threads: int, seed: int
    ) -> None:
        """A round: both load in fresh processes, `repeats` times, and in the last ones do each task as often."""
        for remaining in reversed(range(repeats)):
            builds = {side: Build(source, model, dtype, threads) for side, source in self.sources.items()}

            def call(task: str, number: int, builds: dict[str, Build] = builds, counts: bool = True) -> None:
                self.turn(f"{title}: {task}" if counts else "", lambda which: builds[which].call(task, number))

            try:
                call("load", 0)
                call("first caption", seed + remaining)
                for repeat in range(repeats + 1 if not remaining else 0):
                    for place, task in enumerate(tasks):
                        call(task, seed + repeats + repeat * len(tasks) + place, counts=repeat > 0)
            finally:
                for build in builds.values():
                    build.end()

    def table(self) -> list[str]:
        heads = ["What", "Before, CPU ms", "Now, CPU ms", "Ratio", "Quartiles", "Ratio of lowest", "Calls"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, pairs in self.seconds.items():
            low, middle, high = quartiles(pairs)
            ours, theirs = (f"{statistics.median(pair[side] for pair in pairs) * 1e3:.1f}" for side in (0, 1))
            ratios = f"{middle:.3f} | {low:.2f} to {high:.2f} | {ratio_of_lowest(pairs):.3f}"
            lines.append(f"| {name} | {theirs} | {ours} | {ratios} | {len(pairs)} |")
        return lines

    def slower(self) -> list[str]:
        """What takes more than `BAR` of the other's CPU time, however one measures."""
        return [
            name for name, pairs in self.seconds.items() if quartiles(pairs)[1] > BAR and ratio_of_lowest(pairs) > BAR
        ]


def quartiles(pairs: list[tuple[float, float]]) -> list[float]:
    """Of the ratio of two calls that followed one another."""
    ratios = [ours / theirs for ours, theirs in pairs]
    found: list[float] = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return found


def ratio_of_lowest(pairs: list[tuple[float, float]]) -> float:
    return min(ours for ours, _ in pairs) / min(theirs for _, theirs in pairs)


WRITING = ["caption, 5 beams", "caption, greedy", "ask, 3 questions"]
MATCHING = ["match, 1 image, 5 texts", f"embed, {EMBEDDED} images"]
PARTS = ("start", "mini float32", "mini int8", "real size float32", "real size int8")


def measure(comparison: Comparison, options: argparse.Namespace) -> None:
    if "start" in options.only:
        comparison.starts(options.rounds * options.repeats)
    models = {"mini": ("mini", [*WRITING, "caption, the model's own options", *MATCHING])}
    with tempfile.TemporaryDirectory() as weights:
        if any(part.startswith("real size") for part in options.only):
            from real_size import write

            write("opt", Path(weights), options.depth)
            models["real size"] = weights, WRITING
        for part in (part for part in PARTS[1:] if part in options.only):
            kind, dtype = part.rsplit(" ", 1)
            name, tasks = models[kind]
            for number in range(options.rounds):
                comparison.calls(part, name, dtype, tasks, options.repeats, options.threads, 1000 * number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="before-1.0", help="any revision, or another checkout's folder")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of fresh processes")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each kind, and loads, in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4, help="layers of each part at real size")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if options.worker:
        model, dtype = options.worker
        Worker(model, dtype, options.threads).serve()
        return
    with checked_out(options.revision) as theirs:
        comparison = Comparison(ROOT / "src", theirs)
        with suppress(KeyboardInterrupt):  # what was measured by then is shown
            measure(comparison, options)
    import torch

    print(
        f"this tree against {options.revision}: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{options.threads} threads, Python {platform.python_version()}, torch {torch.__version__}\n"
    )
    print("\n".join(comparison.table()))
    slower = comparison.slower()
    print(f"\nslower than {BAR} x: {', '.join(slower) or 'nothing'}")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
