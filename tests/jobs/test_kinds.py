"""Jobs over Parquet and tars: killed, in parts, and tried again, with Parquet written."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.jobs.test_job import folder_of, run, shade, start, wait_for
from tests.jobs.test_tars import make_tar

COUNT = 24
BAD = 5


def image(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 7)).save(content, "PNG")
    return content.getvalue()


def in_parquet(folder: Path) -> str:
    """Images in cells, the paths of some, and two tables."""
    cells: list[dict[str, Any]] = [{"bytes": image(number), "path": f"{number}.png"} for number in range(COUNT)]
    for number in (7, 19):
        (folder / f"{number}.png").write_bytes(image(number))
        cells[number]["bytes"] = None
    cells[BAD] = {"bytes": None, "path": "gone.png"}
    cells[20] = cells[2]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "id": pa.array(range(COUNT), pa.int16())})
    pq.write_table(table.slice(0, 10), folder / "part-0.parquet", row_group_size=4)
    pq.write_table(table.slice(10), folder / "part-1.parquet", row_group_size=4)
    return str(folder / "part-*.parquet")


def in_tars(folder: Path) -> str:
    files = {f"{number:02}.png": image(2 if number == 20 else number) for number in range(COUNT)}
    files[f"{BAD:02}.png"] = b"no image"
    texts = {f"{number:02}.cls": b"%03d" % number for number in range(COUNT)}
    both = sorted((files | texts).items())
    make_tar(folder / "0.tar", dict(both[:20]))
    make_tar(folder / "1.tar", dict(both[20:]))
    return str(folder / "{0..1}.tar")


@pytest.mark.parametrize("pack", [in_parquet, in_tars])
def test_killed_and_in_parts_it_is_the_same(pack: Callable[[Path], str], tmp_path: Path) -> None:
    source = Path(pack(tmp_path))
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    done = run(source, whole)
    assert json.loads(done.stdout) == {"rows": COUNT, "errors": 1, "copies": 1}, done.stderr
    rows = pq.read_table(whole).to_pylist()
    assert [row["error"] is None for row in rows] == [number != BAD for number in range(COUNT)]
    shades = [None if number == BAD else (2 if number == 20 else number) * 65536 + 7 for number in range(COUNT)]
    assert [row["shade"] for row in rows] == shades
    assert pq.read_schema(whole).field("batch").type == pa.list_(pa.int64())
    process = start(source, killed, hang_at=shade(COUNT - 1))
    wait_for(killed, 200, process)
    process.kill()
    process.communicate(timeout=600)
    assert not killed.exists()
    assert run(source, killed).returncode == 1
    assert killed.read_bytes() == whole.read_bytes()
    parts = []
    for part in (1, 2):
        path = tmp_path / f"{part}.jsonl"
        assert run(source, path, shard=(part, 2), batch_size=1).returncode == (1 if part == 1 else 0)
        parts += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["shade"] for row in parts] == shades
    assert [row.get("cls", row.get("id")) for row in parts] == [row.get("cls", row.get("id")) for row in rows]


def test_what_is_mended_is_tried_again(tmp_path: Path) -> None:
    source = Path(in_parquet(tmp_path))
    output = tmp_path / "out.parquet"
    assert json.loads(run(source, output, limit=12).stdout) == {"rows": 12, "errors": 1, "copies": 0}
    shutil.copy(tmp_path / "7.png", tmp_path / "gone.png")
    assert json.loads(run(source, output, limit=12, retry_errors=True).stdout)["errors"] == 0
    assert pq.read_table(output).column("shade").to_pylist()[BAD] == 7 * 65536 + 7
    assert not folder_of(output).exists()
