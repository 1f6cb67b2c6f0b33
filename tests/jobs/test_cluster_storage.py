"""A job on a real cluster of Ray whose images, blocks and output are in object storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from openblip.jobs import object_storage
from tests.jobs.object_server import ObjectServer, object_server
from tests.jobs.test_cluster import cluster_environment, local_cluster
from tests.jobs.test_job import command, make_table, run

pytest.importorskip("pyarrow")
SPECIAL: dict[int, Any] = {5: (4, 0, 7), 9: b"no image", 21: b"none", 40: (4, 0, 7), 41: (40, 0, 7)}
OUTPUT = "results/of/out.csv"


@pytest.mark.slow
def test_workers_and_drivers_are_killed_and_the_object_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker in the middle of a block, then the driver; a machine with an empty disk brings it to an end."""
    photos = tmp_path / "photos"
    photos.mkdir()
    table = make_table(photos, 60, SPECIAL)
    whole = tmp_path / "whole.csv"
    counts = run(table, whole).stdout
    with object_server() as server:
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        object_storage._system.cache_clear()
        for path in photos.iterdir():
            server.put(f"photos/{path.name}", path.read_bytes())
        with local_cluster() as address:
            first = started(address, tmp_path / "first", pause=0.5)
            os.kill(begun(server, first, 1), signal.SIGKILL)
            begun(server, first, 3)
            first.kill()
            first.wait()
            assert OUTPUT not in server.objects
            second = started(address, tmp_path / "second")
            said, complaint = second.communicate(timeout=600)
            assert (second.returncode, said) == (1, counts), complaint
        assert server.objects[OUTPUT] == whole.read_bytes()
        # What is done stays as long as rows have errors, which can be tried again.
        for number in (9, 21):
            server.put(f"photos/{number}.png", server.objects["photos/8.png"])
        again = started(None, tmp_path / "second", retry_errors=True)
        assert (again.wait(600), [name for name in server.objects if "openblip" in name]) == (0, [])
    object_storage._system.cache_clear()


def started(address: str | None, place: Path, **options: Any) -> subprocess.Popen[str]:
    """A driver in a folder of its own; without a cluster, this machine computes."""
    place.mkdir(exist_ok=True)
    driver = command(Path(), Path())[:2]
    if address is not None:
        options["ray"] = {"address": address, "workers": 2}
    given = [f"{name}={json.dumps(value)}" for name, value in options.items()]
    return subprocess.Popen(
        [*driver, "s3://photos/table.csv", f"s3://{OUTPUT}", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster_environment(),
        cwd=place,
    )


def begun(server: ObjectServer, process: subprocess.Popen[str], count: int) -> int:
    """The process that is at a block, once so many are done before."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        objects = dict(server.objects)
        under_way = [content for name, content in objects.items() if name.endswith(".begun")]
        if under_way and sum(name.endswith(".rows") for name in objects) >= count:
            return int(json.loads(under_way[0])["pid"])
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=60))
