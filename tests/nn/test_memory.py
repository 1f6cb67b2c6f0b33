"""Huge pages: real memory of this process, read back, and what the kernel says of it."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openblip.nn import memory as huge_pages

HUGE = 2 * 2**20
REPORT = """
import ctypes, mmap, re, sys
from openblip.nn.memory import gather
room = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
room[: 32 * 2**20] = bytes(range(256)) * (32 * 2**20 // 256)  # its second half stays empty
def told(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1]) * 1024
before = told("Rss")
gathered = gather()
assert room[: 32 * 2**20] == bytes(range(256)) * (32 * 2**20 // 256)
print(gathered, told("AnonHugePages"), told("Rss") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux'")
def test_full_memory_is_gathered_and_keeps_its_bytes() -> None:
    if not huge_pages._huge_size():
        pytest.skip("no huge pages for those who ask here")
    report = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True).stdout
    gathered, huge, growth = map(int, report.split())
    if not gathered:
        pytest.skip("this kernel gathers nothing on request (before 6.1, or memory is short)")
    assert gathered >= 28 * 2**20
    assert huge >= gathered
    assert growth < 8 * 2**20  # the empty half was not filled


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux'")
@pytest.mark.parametrize("enabled", ["always madvise [never]", None, "nonsense"])
def test_nothing_happens_where_there_are_none(
    enabled: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
    assert huge_pages.gather() == 0


def test_every_memory_that_is_looked_at_is_ones_own_and_writable() -> None:
    if sys.platform != "linux":
        pytest.skip("huge pages are Linux'")
    shared = mmap.mmap(-1, HUGE)  # MAP_SHARED: not the process' own alone
    shared[:] = b"1" * HUGE
    found = list(huge_pages._own_memory())
    maps = Path("/proc/self/maps").read_text()
    foreign = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in maps.splitlines()
        if re.search(r" (r-|r.x|...s) ", line)
    ]
    assert found
    assert not set(found) & set(foreign)


def test_weights_are_gathered_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(huge_pages, "gather", lambda: calls.append(1) or 0)  # type: ignore[func-returns-value]
    gatherer = huge_pages.Gatherer()
    for _ in range(10):
        gatherer.add(huge_pages.AT_A_TIME // 4)
    assert len(calls) == 2


LAYERS = """
import resource, sys
import torch
from openblip.nn.memory import reuse_freed
if sys.argv[1] == "reuse":
    reuse_freed()
def layers():
    pieces = [torch.ones(2 * 2**20) for _ in range(3)]  # 8 MB each
    return float(pieces[0][0])
for _ in range(8):  # until there is room for what is aligned differently
    layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc's alone")
def test_what_layers_free_is_used_again() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    faults = {}
    for way in ("reuse", "not"):
        command = [sys.executable, "-c", LAYERS, way]
        faults[way] = int(subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout)
    if faults["not"] < 1000:
        pytest.skip("this allocator gives nothing back")
    assert faults["reuse"] < faults["not"] / 2
