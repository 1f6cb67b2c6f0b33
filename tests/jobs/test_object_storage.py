"""Jobs whose inputs and outputs are in object storage, over HTTP: killed and continued, they give the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.jobs import object_storage
from openblip.jobs.object_storage import ObjectStore, StoredFile, find, join, matches, read_image
from tests.jobs.object_server import ObjectServer, object_server
from tests.jobs.test_job import command, folder_of, make_table, run, wait_for

pytest.importorskip("pyarrow")
SECRET = "a-secret-of-the-bucket"
SPECIAL: dict[int, Any] = {5: (4, 0, 7), 9: b"no image", 17: b"none", 30: (3, 0, 7)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    with object_server() as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        (tmp_path / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        object_storage._system.cache_clear()
        yield found
        assert not [line for line in found.requests if SECRET in line]
        assert not [name for name, content in found.objects.items() if SECRET.encode() in content]
    object_storage._system.cache_clear()


def uploaded(server: ObjectServer, folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        if path.is_file():
            server.put(f"{prefix}/{path.name}", path.read_bytes())


def test_addresses(server: ObjectServer) -> None:
    for name in ("img10.jpg", "img2.jpg", "sub/deep/a.png", ".hidden/b.jpg", "notes.txt"):
        server.put(f"photos/of ann/{name}", name.encode())
    root = "s3://photos/of ann"
    assert find(root) == [f"{root}/{name}" for name in ("img2.jpg", "img10.jpg", "notes.txt", "sub/deep/a.png")]
    assert find(f"{root}/*.jpg") == [f"{root}/img2.jpg", f"{root}/img10.jpg"]
    assert find(f"{root}/**/*.png") == [f"{root}/sub/deep/a.png"]
    assert read_image(f"{root}/img2.jpg") == b"img2.jpg"
    with pytest.raises(ImageError, match=r"s3://photos/none: is not there"):
        read_image("s3://photos/none")
    with pytest.raises(OptionError, match="user name or a key") as refused:
        find("s3://key:hidden@photos/x")
    assert "hidden" not in str(refused.value)
    with pytest.raises(OptionError, match="names no bucket"):
        find("s3://")
    assert join("s3://photos/a/", "sub\\b.jpg") == "s3://photos/a/sub/b.jpg"
    for outside in ("../b.jpg", "C:\\b.jpg"):
        with pytest.raises(OpenBlipError, match="no path below"):
            join("s3://photos/a", outside)


@pytest.mark.parametrize(
    ("path", "pattern", "is_match"),
    [
        ("a.jpg", "*.jpg", True),
        ("x/a.jpg", "*.jpg", False),
        ("x/a.jpg", "**/*.jpg", True),
        ("a.jpg", "**/*.jpg", True),
        ("x/y/a.jpg", "x/**", True),
        ("x/y/a.jpg", "x/?/a.*", True),
        ("x/y", "x", False),
    ],
)
def test_patterns(path: str, pattern: str, is_match: bool) -> None:
    assert matches(path, pattern) == is_match


def test_small_files_are_there_whole(server: ObjectServer) -> None:
    store = ObjectStore("s3://results/out.csv.openblip/chunks")
    assert store.names() == [] and store.read("0.rows") is None
    store.clear()
    store.write("0.rows", b"one")
    store.write("8.rows", bytes(6_000_000))
    assert sorted(store.names()) == ["0.rows", "8.rows"]
    assert store.read("0.rows") == b"one" and store.read("8.rows") == bytes(6_000_000)
    store.remove(["0.rows", "gone"])
    assert store.names() == ["8.rows"]
    store.clear()
    assert store.names() == []


def test_a_copy_is_of_one_version(server: ObjectServer) -> None:
    server.put("tables/a.csv", b"image\n")
    file = StoredFile.now_at("s3://tables/a.csv")
    assert (str(file), file.name, file.suffix) == ("s3://tables/a.csv", "a.csv", ".csv")
    server.put("tables/a.csv", b"image\nb.jpg\n")
    with pytest.raises(OpenBlipError, match="changed meanwhile"):
        file.read_bytes()
    again = StoredFile.now_at("s3://tables/a.csv")
    assert again.read_bytes() == b"image\nb.jpg\n" and again.stat().st_size == 12
    again.forget()
    assert not os.path.exists(again.parent)
    with pytest.raises(OpenBlipError, match="no file s3://tables/none"):
        StoredFile.now_at("s3://tables/none")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    object_storage._system.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match=r'pip install "openblip\[storage\]"'):
        find("s3://photos/a")


@pytest.mark.slow
def test_a_killed_job_goes_on(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path, 40, SPECIAL)
    whole = tmp_path / "whole.csv"
    counts = run(table, whole).stdout
    uploaded(server, tmp_path, "photos")
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    source, output = "s3://photos/table.csv", "s3://results/of/out.csv"
    process = subprocess.Popen([*command(Path(), Path(), pause=0.2)[:2], source, output, "pause=0.2"])
    wait_for(place / "out.csv", 400, process)
    process.kill()
    process.wait()
    assert "results/of/out.csv" not in server.objects and folder_of(place / "out.csv").exists()
    done = stored_run(source, output)
    assert (done.returncode, done.stdout) == (1, counts), done.stderr
    assert server.objects["results/of/out.csv"] == whole.read_bytes()
    refused = stored_run(source, output, batch_size=4)
    assert refused.returncode == 2
    assert "s3://results/of/out.csv.openblip (and " in refused.stderr
    for number in (9, 17):
        server.put(f"photos/{number}.png", server.objects["photos/8.png"])
    assert stored_run(source, output, retry_errors=True).returncode == 0
    assert [name for name in server.objects if "openblip" in name] == []
    assert os.listdir(place) == []
    assert "is there already" in stored_run(source, output).stderr


@pytest.mark.slow
def test_another_machine_goes_on(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's blocks are in the storage: what has the journal alone may be lost."""
    photos = tmp_path / "photos"
    photos.mkdir()
    make_table(photos, 40, SPECIAL).unlink()
    uploaded(server, photos, "photos/2026")
    for name in ("first", "second", "local"):
        (tmp_path / name).mkdir()
    output = "s3://results/out.jsonl"
    monkeypatch.chdir(tmp_path / "first")
    stopped = stored_run("s3://photos/2026", output, backwards=2)
    assert (stopped.returncode, stopped.stderr) == (2, "error: enough\n")
    blocks = {name for name in server.objects if name.endswith(".rows")}
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path / "second")
    done = stored_run("s3://photos/2026", output, backwards=9)
    assert json.loads(done.stdout) == {"rows": 40, "errors": 2, "copies": 2}, done.stderr
    monkeypatch.chdir(tmp_path / "local")
    assert stored_run("s3://photos/2026", str(tmp_path / "whole.jsonl")).returncode == 1
    assert server.objects["results/out.jsonl"] == (tmp_path / "whole.jsonl").read_bytes()


def stored_run(source: str, output: str, **options: Any) -> subprocess.CompletedProcess[str]:
    driver = command(Path(), Path())[:2]
    given = [f"{name}={json.dumps(value)}" for name, value in options.items()]
    return subprocess.run([*driver, source, output, *given], capture_output=True, text=True, check=False, timeout=600)
