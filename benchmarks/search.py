"""Search over many images: exact comparison against LanceDB's own exact multivector search, size, and recall.

    python benchmarks/search.py [--images 5000] [--vectors 32] [--queries 10] [--rounds 3] [--indexed] [--threads 2]

Images are clusters of random unit vectors of 256 numbers, 32 each as of a BLIP-2; a query is one vector near a cluster.
Both searches read the same table and take turns. Recall is that of the ten best of float32 vectors, over ten times as
many queries as are timed. With --indexed, LanceDB's index proposes candidates, as above 100,000 images; to build it
takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.search import scan
from openblip.search.codes import Codes
from openblip.search.index import CANDIDATES, PROBES
from openblip.search.store import VECTORS, Entry, Note, Store

WIDTH = 256
CHUNK = 500
BEST = 10


class Images:
    """Vectors of images, made piece by piece."""

    def __init__(self, count: int, vectors: int) -> None:
        self.count, self.vectors = count, vectors
        self.generator = torch.Generator().manual_seed(0)
        self.centres = torch.randn(max(1, count // 50), WIDTH, generator=self.generator)

    def chunk(self, size: int) -> Tensor:
        """[size, vectors, WIDTH]; an image is near its cluster, and its vectors near it."""
        cluster = torch.randint(len(self.centres), (size,), generator=self.generator)
        image = self.centres[cluster] + 0.5 * torch.randn(size, WIDTH, generator=self.generator)
        spread = torch.randn(size, self.vectors, WIDTH, generator=self.generator)
        return F.normalize(image[:, None] + 0.7 * spread, dim=-1)

    def queries(self, count: int) -> Tensor:
        """[count, WIDTH]."""
        cluster = torch.randint(len(self.centres), (count,), generator=self.generator)
        return F.normalize(self.centres[cluster] + torch.randn(count, WIDTH, generator=self.generator), dim=-1)


def build(store: Store, images: Images, queries: Tensor) -> list[set[int]]:
    """Write the table; the numbers of the ten best images of each query, by float32 vectors."""
    store.create(Note({"name": "random"}, images.vectors, WIDTH, []))
    scores = []
    for start in range(0, images.count, CHUNK):
        size = min(CHUNK, images.count - start)
        vectors = images.chunk(size)
        entries = [Entry(start + row, str(start + row), 1, 1, bytes(32)) for row in range(size)]
        store.append(entries, vectors)
        scores.append((vectors.view(-1, WIDTH) @ queries.T).view(size, images.vectors, -1).amax(dim=1))
    best = torch.cat(scores).topk(min(BEST, images.count), dim=0).indices.T
    return [set(row) for row in best.tolist()]


def theirs(store: Store, query: Tensor) -> list[int]:
    search = store._opened().search(query.numpy(), vector_column_name=VECTORS).distance_type("cosine")
    return list(search.select(["id", "_distance"]).limit(BEST).to_arrow().column("id").to_pylist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--vectors", type=int, default=32)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--indexed", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the table is written; by default a temporary folder")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = Images(options.images, options.vectors)
    queries = images.queries(10 * options.queries)
    timed = options.queries
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(Path(folder) / "db")
        with store.held():
            start = time.perf_counter()
            truth = build(store, images, queries)
            store.tidy(options.images)
        print(f"{options.images:,} images written in {time.perf_counter() - start:.1f} s", flush=True)
        each, whole = store.nbytes() / options.images, options.vectors * WIDTH * 4
        rows.append(Row("bytes an image, of float32", each / whole, "x", each, whole, less_is_better=True))

        start = time.perf_counter()
        blocks = store.blocks()
        numbers = [number for part, _ in blocks for number in part]
        read = time.perf_counter() - start
        vectors = [block for _, block in blocks]
        rows.append(Row("vectors read from the disk, once a process", read, "s", less_is_better=True))
        start = time.perf_counter()
        codes = Codes(vectors) if scan.codes_are_fast() else None
        made = time.perf_counter() - start
        rows.append(Row("codes made, once a process that searches again", made, "s", less_is_better=True))
        scan.half_is_fast()

        first_ms = []
        for query in queries[:timed]:
            start = time.perf_counter()
            plain = scan.best(vectors, query[None], BEST)
            first_ms.append(1000 * (time.perf_counter() - start))
            if plain != scan.best(vectors, query[None], BEST, codes=codes):
                raise SystemExit("codes change what is found")
        first = statistics.median(first_ms)
        rows.append(Row("exact search without codes, the first of a process", first, "ms", less_is_better=True))

        ours_s: list[float] = []
        theirs_s: list[float] = []
        for turn in range(options.rounds):
            for query in queries[:timed]:
                start = time.perf_counter()
                scan.best(vectors, query[None], BEST, codes=codes)
                middle = time.perf_counter()
                theirs(store, query)
                end = time.perf_counter()
                if turn or options.rounds == 1:  # the first is a warm-up
                    ours_s.append(middle - start)
                    theirs_s.append(end - middle)
        ours_ms, theirs_ms = (1000 * statistics.median(taken) for taken in (ours_s, theirs_s))
        rows.append(Row("exact search, ms, against LanceDB's", theirs_ms / ours_ms, ours=ours_ms, theirs=theirs_ms))
        hits = 0
        for query, wanted in zip(queries, truth, strict=True):
            hits += len(wanted & {numbers[place] for place, _ in scan.best(vectors, query[None], BEST, codes=codes)})
        rows.append(Row(f"recall@{BEST}, exact search", hits / (BEST * len(queries)), ""))

        photo = images.chunk(1)[0]
        start = time.perf_counter()
        scan.best(vectors, photo, BEST, codes=codes)
        taken = 1000 * (time.perf_counter() - start)
        rows.append(Row(f"search by a photo ({options.vectors} vectors)", taken, "ms", less_is_better=True))

        if options.indexed:
            rows += indexed(store, queries, truth)
    print(f"\n{options.images:,} images of {options.vectors} vectors, {options.threads} threads\n")
    print("| | | ours | theirs |\n|---|---|---|---|")
    for row in rows:
        sides = " | ".join("" if side is None else f"{side:,.4g}" for side in (row.ours, row.theirs))
        print(f"| {row.name} | {row.value:.4g} {row.unit} | {sides} |")
    finish(rows, options.json, f"{options.images} images, {options.vectors} vectors, {options.threads} threads")


def indexed(store: Store, queries: Tensor, truth: list[set[int]]) -> list[Row]:
    """Candidates by LanceDB's index, compared exactly."""
    start = time.perf_counter()
    with store.held():
        store.tidy(0)
    built = time.perf_counter() - start
    hits, taken = 0, []
    for query, wanted in zip(queries, truth, strict=True):
        start = time.perf_counter()
        numbers, vectors = store.take(store.candidates(query[None], CANDIDATES, PROBES) or [])
        best = scan.exact(vectors, query[None]).topk(min(BEST, len(numbers))).indices.tolist()
        taken.append(time.perf_counter() - start)
        hits += len(wanted & {numbers[row] for row in best})
    return [
        Row("index built", built, "s", less_is_better=True),
        Row("search by the index", 1000 * statistics.median(taken), "ms", less_is_better=True),
        Row(f"recall@{BEST} by the index", hits / (BEST * len(queries)), ""),
    ]


if __name__ == "__main__":
    main()
