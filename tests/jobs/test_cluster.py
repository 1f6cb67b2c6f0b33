"""A job on a cluster: blocks in any order, on any machine, killed at any time, give the bytes of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import OptionError
from openblip.jobs.chunks import Block, ChunkFiles, blocks_of
from openblip.jobs.cluster import Cluster, Share, share_of
from openblip.jobs.storage import FolderStore
from tests.jobs.test_job import DEADLY, command, folder_of, make_table, run, shade, start, wait_for

SPECIAL: dict[int, Any] = {5: (4, 0, 7), 9: b"no image", 17: None, 21: b"no image", 40: (4, 0, 7), 41: (40, 0, 7)}
SPECIAL |= dict.fromkeys(range(24, 36), (3, 0, 7)) | {50: (30, 0, 7)}
"""Copies within a block of 12 rows and of other blocks, and a block of nothing else."""
KILLS_PARENT = (1, 2, 5)


@pytest.mark.slow
def test_blocks_in_any_order_by_several_hands_give_the_same_bytes(tmp_path: Path) -> None:
    table = make_table(tmp_path, 60, SPECIAL | {45: DEADLY})
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert json.loads(run(table, whole).stdout) == {"rows": 60, "errors": 4, "copies": 15}
    stopped = run(table, output, backwards=2)
    assert (stopped.returncode, stopped.stderr) == (2, "error: enough\n")
    assert {path.name for path in (folder_of(output) / "chunks").glob("*.rows")} == {"36.rows", "48.rows"}
    # A single machine goes on, and is killed in the middle of a block; then another cluster.
    here = start(table, output, hang_at=shade(59))
    wait_for(output, 100, here)
    here.kill()
    here.wait()
    assert run(table, output, backwards=1).stderr == "error: enough\n"
    done = run(table, output)
    assert json.loads(done.stdout) == {"rows": 60, "errors": 4, "copies": 15}, done.stderr
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in folder_of(output).iterdir()) == ["job.json", "rows.jsonl"]
    # And back: a cluster alone, of a job that was not begun elsewhere.
    assert run(table, tmp_path / "again.csv", backwards=9).returncode == 1
    assert (tmp_path / "again.csv").read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_block_that_kills_its_worker_is_done_with_care(tmp_path: Path) -> None:
    table = make_table(tmp_path, 30, {16: KILLS_PARENT})
    output = tmp_path / "out.csv"
    begun = folder_of(output) / "chunks" / "12.begun"
    deaths = []
    for _ in range(5):
        done = run(table, output, backwards=9, run="one")
        deaths.append(done.returncode)
        if done.returncode != -signal.SIGKILL:
            break
        assert json.loads(begun.read_text(encoding="utf-8"))["run"] == "one"
    # Twice as any block, once with care, once each image alone: then it is known which it is.
    assert deaths == [-signal.SIGKILL] * 4 + [1]
    lines = output.read_text(encoding="utf-8").replace("two\nlines", "").splitlines()
    assert [line[:3] for line in lines if "was killed" in line] == ["016"]


def test_files_of_blocks_are_whole_or_not_there(tmp_path: Path) -> None:
    assert list(blocks_of(3, range(3, 20), 8)) == [Block(3, 11), Block(11, 19), Block(19, 20)]
    assert list(blocks_of(13, range(3, 20), 8)) == [Block(13, 19), Block(19, 20)]
    chunks = ChunkFiles(FolderStore(tmp_path / "chunks"))
    block = Block(3, 6)
    assert chunks.rows(block) is None and chunks.keys(block) is None and chunks.done() == set()
    chunks.put_keys(block, bytes(range(48)))
    assert chunks.keys(block) == bytes(range(48)) and chunks.keys(Block(3, 7)) is None
    (tmp_path / "chunks" / "3.keys").write_bytes(bytes(52))
    assert chunks.keys(block) is None
    chunks.put_rows(block, b'{"row":3}\t00000000\n')
    assert chunks.rows(block) is None and chunks.done() == {3} and chunks.keys(block) is None
    (tmp_path / "chunks" / f"3.rows.{'0' * 32}.draft").write_bytes(b"")
    assert chunks.store.names() == ["3.rows"]
    chunks.store.clear()
    assert not (tmp_path / "chunks").exists()


def test_who_gets_what_of_a_cluster() -> None:
    assert share_of(Cluster(), {"CPU": 96, "GPU": 8}, [48, 48], True) == Share(8, 1.0, None)
    assert share_of(Cluster(gpus=0.5, workers=3), {"CPU": 8, "GPU": 2}, [8], True) == Share(3, 0.5, None)
    assert share_of(Cluster(), {"CPU": 96, "GPU": 8}, [48, 48], False) == Share(2, 0.0, 48)
    assert share_of(Cluster(workers=8), {"CPU": 20}, [16, 4], True) == Share(8, 0.0, 2)
    with pytest.raises(OptionError, match="give --workers 2"):
        share_of(Cluster(workers=3), {"GPU": 2}, [8], True)
    with pytest.raises(OptionError, match="0 GPUs, too few"):
        share_of(Cluster(gpus=1), {"CPU": 8}, [8], True)
    with pytest.raises(OptionError, match="more than the 8 processors"):
        share_of(Cluster(workers=9), {"CPU": 8}, [8], True)
    with pytest.raises(OptionError, match="--workers is 0"):
        Cluster(workers=0)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    with local_cluster() as address:
        yield address


@contextmanager
def local_cluster() -> Iterator[str]:
    """The address of a real cluster of two processors, with the environment of this process."""
    pytest.importorskip("ray")
    # Sockets have short paths.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp" if os.path.isdir("/tmp") else None)
    log = Path(folder) / "log"
    flags = ["--head", "--block", "--num-cpus=2", "--num-gpus=0", "--port=0", "--node-ip-address=127.0.0.1"]
    flags += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=80000000"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, f"--temp-dir={folder}"]
    with log.open("wb") as said:
        head = subprocess.Popen(
            start, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=cluster_environment(), start_new_session=True
        )
    try:
        address = None
        deadline = time.monotonic() + 600
        while address is None:
            assert time.monotonic() < deadline, "Ray does not start"
            text = log.read_text(encoding="utf-8", errors="replace")
            assert head.poll() is None, text
            address = re.search(r"address='([^']+)'", text)
            time.sleep(0.2)
        yield address[1]
    finally:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def cluster_environment() -> dict[str, str]:
    """Of a cluster and of those who use it: nothing is sent or asked for, and no key is written to the home folder."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def start_on(address: str, source: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    options["ray"] = {"address": address, "workers": 2}
    return subprocess.Popen(
        command(source, output, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster_environment(),
    )


def begun_blocks(output: Path, process: subprocess.Popen[str], count: int = 1) -> dict[int, int]:
    """First rows of blocks that are under way, with the processes that are at them, once so many are done before."""
    folder = folder_of(output) / "chunks"
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(folder.glob("*.rows"))) >= count:
            found = {}
            for path in folder.glob("*.begun"):
                with suppress(OSError):  # done meanwhile
                    found[int(path.stem)] = json.loads(path.read_text(encoding="utf-8"))["pid"]
            if found:
                return found
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=60))


def test_a_killed_worker_costs_its_block(ray_cluster: str, tmp_path: Path) -> None:
    table = make_table(tmp_path, 60, SPECIAL)
    assert run(table, tmp_path / "whole.csv").returncode == 1
    output = tmp_path / "out.csv"
    driver = start_on(ray_cluster, table, output, pause=0.5)
    start, pid = next(iter(begun_blocks(output, driver).items()))
    os.kill(pid, signal.SIGKILL)
    said, complaint = driver.communicate(timeout=600)
    assert (driver.returncode, json.loads(said or "0")) == (1, {"rows": 60, "errors": 3, "copies": 15}), complaint
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert start % 12 == 0


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver(ray_cluster: str, tmp_path: Path) -> None:
    """Two workers; one is killed, then the driver; a second driver is refused meanwhile; the next one ends the job."""
    table = make_table(tmp_path, 240, SPECIAL | {45: DEADLY, 100: KILLS_PARENT, 200: (9, 0, 7)})
    whole = run(table, tmp_path / "whole.csv", limit=100)
    assert whole.returncode == 1, whole.stderr
    output = tmp_path / "out.csv"
    driver = start_on(ray_cluster, table, output, pause=1.0, limit=100)
    os.kill(next(iter(begun_blocks(output, driver, 1).values())), signal.SIGKILL)
    second = start_on(ray_cluster, table, output, limit=100)
    _, complaint = second.communicate(timeout=600)
    assert (second.returncode, f"(process {driver.pid})" in complaint) == (2, True), complaint
    begun_blocks(output, driver, 4)
    driver.kill()
    driver.communicate(timeout=600)
    assert not output.exists()
    kept = {path.name: path.read_bytes() for path in (folder_of(output) / "chunks").glob("*.rows")}
    assert len(kept) >= 4
    last = start_on(ray_cluster, table, output, limit=100)
    said, complaint = last.communicate(timeout=600)
    assert (last.returncode, json.loads(said or "0")) == (1, json.loads(whole.stdout)), complaint
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
def test_a_row_that_kills_workers_of_a_cluster_is_an_error(ray_cluster: str, tmp_path: Path) -> None:
    table = make_table(tmp_path, 30, {16: KILLS_PARENT, 3: DEADLY})
    driver = start_on(ray_cluster, table, tmp_path / "out.csv")
    said, complaint = driver.communicate(timeout=600)
    assert (driver.returncode, json.loads(said or "0")["errors"]) == (1, 2), complaint
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").replace("two\nlines", "").splitlines()
    assert [line[:3] for line in lines if "was killed" in line] == ["003", "016"]


@pytest.mark.slow
def test_no_cluster_at_an_address(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    table = make_table(tmp_path, 3)
    driver = start_on("127.0.0.1:1", table, tmp_path / "out.csv")
    _, complaint = driver.communicate(timeout=600)
    assert driver.returncode == 2
    assert complaint.startswith("error: no Ray cluster at 127.0.0.1:1 ("), complaint
