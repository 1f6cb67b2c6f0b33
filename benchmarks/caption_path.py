"""How many files and calls of the package one caption passes through, in this tree and in another build.

    python benchmarks/caption_path.py [REVISION]    as of against_build.py
    python benchmarks/caption_path.py --calls       the calls of this tree until the first logits, one a line

The caption is `mini`'s of a JPEG file, by the same search in both, in a process that has captioned before. A file
counts when one of its functions runs. Calls are those of named functions and methods outside `nn/`; comprehensions and
lambdas are part of the function around them. The first logits are there when the language model has read the prompt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from against_build import ROOT, Worker, checked_out, environment
from mini_speed import synthetic_jpeg

READ = "read"
"""What `generation` calls of the language model for the first logits."""


@dataclass
class Trace:
    """What runs of a package in this thread.

    Attributes:
        files: of the package, by their paths in it.
        calls: of named functions outside `nn/`, each with how deep it is among these.
        until_logits: how many of them there were when the language model had read the prompt.
    """

    package: Path
    files: set[str] = field(default_factory=set)
    calls: list[tuple[int, str]] = field(default_factory=list)
    until_logits: int = 0
    depth: int = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(str(self.package)):
            return
        file = Path(code.co_filename).relative_to(self.package).as_posix()
        self.files.add(file)
        if file.startswith("nn/"):
            if event == "return" and code.co_name == READ and not self.until_logits:
                self.until_logits = len(self.calls)
        elif not code.co_name.startswith("<") and event in ("call", "return"):
            if event == "call":
                self.calls.append((self.depth, f"{file}: {code.co_name}"))
            self.depth += 1 if event == "call" else -1


def trace() -> Trace:
    """Of the second caption of a process."""
    import openblip

    worker = Worker("mini", "float32", 1)
    worker.load(0)()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            path = Path(folder) / f"{number}.jpg"
            path.write_bytes(synthetic_jpeg(seed=number))
            found = Trace(Path(openblip.__file__).parent)
            options = worker.options(5, 12)
            sys.setprofile(found)
            try:
                worker.model.caption(str(path), **options)
            finally:
                sys.setprofile(None)
    return found


def traced(source: Path) -> dict[str, Any]:
    """The trace of a build, from a process of its own."""
    command = [sys.executable, __file__, "--worker"]
    ran = subprocess.run(command, env=environment(source, 1), check=True, stdout=subprocess.PIPE, text=True)
    content: dict[str, Any] = json.loads(ran.stdout)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="before-1.0", help="any revision, or another checkout's folder")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = trace()
        print(json.dumps({"files": sorted(found.files), "calls": found.calls, "until_logits": found.until_logits}))
        return
    ours = traced(ROOT / "src")
    if options.calls:
        for depth, call in ours["calls"][: ours["until_logits"]]:
            print(f"{'  ' * depth}{call}")
        return
    with checked_out(options.revision) as source:
        theirs = traced(source)
    print(f"| | {options.revision} | this tree |\n|---|---|---|")
    print(f"| files | {len(theirs['files'])} | {len(ours['files'])} |")
    for name, key in (("files outside nn/", False), ("files of nn/", True)):
        counts = [sum(file.startswith("nn/") is key for file in build["files"]) for build in (theirs, ours)]
        print(f"| {name} | {counts[0]} | {counts[1]} |")
    print(f"| calls until the first logits | {theirs['until_logits']} | {ours['until_logits']} |")
    print(f"| calls in all | {len(theirs['calls'])} | {len(ours['calls'])} |")


if __name__ == "__main__":
    main()
