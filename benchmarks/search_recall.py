"""Recall of an index against `openblip evaluate`: the same photos, the same captions, the same numbers.

    python benchmarks/search_recall.py --data DATA [--images 1000] [--model mini] [--rerank 16]

DATA holds flickr8k/captions.jsonl and its images (split val: Karpathy's 1,000, with five captions each). The photos
are put into an index by `openblip index`, every caption is searched for in it, and how often its photo is among the
best is compared with what `openblip evaluate` finds. Some captions are searched for by `openblip search`, too. The run
ends with an error where a share differs by more than --within: an index keeps vectors in half precision, by which two
photos that fit nearly alike may change places.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

import openblip
from openblip.search import Index

DEPTHS = (1, 5, 10)
OPENBLIP = [sys.executable, "-m", "openblip"]
CACHE = 2**31
"""Bytes of encoded images, so that each is encoded once for all searches."""
COMMANDS = 5
"""Captions that are searched for by the command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rerank", type=int, default=16)
    parser.add_argument("--within", type=float, default=0.001)
    given = parser.parse_args()
    rows = read_rows(given.data / "flickr8k", given.images)
    with tempfile.TemporaryDirectory(prefix="openblip-recall-") as folder:
        table = Path(folder) / "data.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        lists = Path(folder) / "photos.txt"
        lists.write_text("".join(f"{row['image']}\n" for row in rows), encoding="utf-8")
        db = Path(folder) / "photos.index"
        start = time.perf_counter()
        subprocess.run([*OPENBLIP, "index", str(lists), "--db", str(db), "--model", given.model], check=True)
        print(f"indexed in {time.perf_counter() - start:.1f} s", flush=True)
        index = Index.open(db, model=openblip.load(given.model, image_cache=CACHE))
        differ = False
        for rerank in (0, given.rerank):
            found = searched(index, rows, rerank)
            wanted = evaluated(table, Path(folder) / f"evaluation{rerank}", given.model, rerank)
            for depth in DEPTHS:
                ours, theirs = found[depth], wanted[f"text_to_image_at_{depth}"]
                differ |= abs(ours - theirs) > given.within
                way = f"ITC, ITM for {rerank}" if rerank else "ITC"
                print(f"{way}: recall@{depth} of the index {ours:.2%}, of openblip evaluate {theirs:.2%}", flush=True)
        compare_command(index, rows, given.rerank)
    if differ:
        raise SystemExit("the index finds other photos than openblip evaluate")


def read_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "val"][:count]
    return [{"image": os.path.abspath(folder / row["image"]), "captions": row["captions"]} for row in rows]


def evaluated(table: Path, output: Path, model: str, rerank: int) -> dict[str, float]:
    command = [*OPENBLIP, "evaluate", "--data", str(table), "--model", model, "--task", "retrieval"]
    subprocess.run(
        [*command, "--output", str(output), f"retrieval.rerank={rerank}"], check=True, stdout=subprocess.DEVNULL
    )
    read = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return dict(read["metrics"])


def searched(index: Index, rows: Sequence[dict[str, Any]], rerank: int) -> dict[int, float]:
    """The share of the captions whose photo is among the best, by how many these are."""
    hits = dict.fromkeys(DEPTHS, 0)
    texts = [(text, row["image"]) for row in rows for text in row["captions"]]
    start = time.perf_counter()
    for text, image in track(texts, f"searching, --rerank {rerank}"):
        paths = [one.path for one in index.search(text, top=max(DEPTHS), rerank=rerank)]
        for depth in DEPTHS:
            hits[depth] += image in paths[:depth]
    shares = {depth: count / len(texts) for depth, count in hits.items()}
    told = ", ".join(f"recall@{depth} {share:.2%}" for depth, share in shares.items())
    print(f"--rerank {rerank}: {told}, {1000 * (time.perf_counter() - start) / len(texts):.1f} ms a search", flush=True)
    return shares


def compare_command(index: Index, rows: Sequence[dict[str, Any]], rerank: int) -> None:
    """Raises SystemExit when `openblip search` prints other photos than the index finds."""
    for row in rows[:: max(1, len(rows) // COMMANDS)][:COMMANDS]:
        text = row["captions"][0]
        command = [
            *OPENBLIP,
            "search",
            text,
            "--db",
            str(index.folder),
            "--rerank",
            str(rerank),
            "--top",
            "10",
            "--paths",
        ]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        if printed != [one.path for one in index.search(text, top=10, rerank=rerank)]:
            raise SystemExit(f"openblip search {text!r} prints other photos than the index finds")
    print("openblip search prints the same photos", flush=True)


if __name__ == "__main__":
    main()
