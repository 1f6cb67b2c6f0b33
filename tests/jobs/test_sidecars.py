"""Files beside photos: a job that is killed, stopped and cut off from its disk writes them as one that is not."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.errors import OptionError
from openblip.jobs.plan import JobOptions, plan_job
from openblip.jobs.sidecars import Sidecars, place_of
from openblip.jobs.verbs import Caption, Embed
from openblip.jobs.xmp import NEW, read_xmp
from tests.jobs.test_job import command, folder_of, rows_file, run, small_disk, wait_for

__all__ = ["small_disk"]


def make_photos(folder: Path, count: int) -> Path:
    """Photos in two folders, of which one is a copy, one is none, and every fifth has a text already."""
    for number in range(count):
        path = folder / ("b" if number % 3 else "a") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 4:
            path.write_bytes(b"no image")
        else:
            Image.new("RGB", (2, 2), (min(number, count - 2), 0, 7)).save(path)
        if number % 5 == 2:
            path.with_suffix(".txt").write_text("mine\n")
            path.with_name(path.name + ".xmp").write_bytes(NEW.encode())
    return folder


def texts_of(folder: Path, kind: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(f"*.{kind}"))}


@pytest.mark.parametrize(("kind", "existing", "times"), [("txt", "skip", 3), ("xmp", "append", 5)])
def test_killed_again_and_again_the_sidecars_have_the_same_bytes(
    tmp_path: Path, kind: str, existing: str, times: int
) -> None:
    whole, killed = make_photos(tmp_path / "whole", 50), make_photos(tmp_path / "killed", 50)
    before = texts_of(whole, kind)
    options: dict[str, Any] = {"sidecar": [kind, existing], "batch_size": 2}
    done = run(whole, whole / "work", **options)
    counts = json.loads(done.stdout)
    rows = 40 if existing == "skip" else 50
    assert (done.returncode, counts["rows"], counts["errors"], counts["skipped"]) == (1, rows, 1, 50 - rows)
    expected = texts_of(whole, kind)
    assert len(expected) == 49 and all(expected[name] == before[name] for name in before if existing == "skip")
    chance = random.Random(5)
    kills = 0
    for number in range(times):
        process = subprocess.Popen(command(killed, killed / "work", **options, pause=0.05), stderr=subprocess.PIPE)
        wait_for(killed / "work", 7000 * (number + 1) // times, process)
        time.sleep(chance.uniform(0, 0.05))
        kills += process.poll() is None
        process.kill()
        process.communicate(timeout=600)
        for name, content in texts_of(killed, kind).items():  # each is what it was or what it will be
            assert content in (before.get(name), expected[name])
    assert kills >= times // 2
    done = run(killed, killed / "work", **options)
    assert (done.returncode, json.loads(done.stdout)["errors"]) == (1, 1), done.stderr
    assert texts_of(killed, kind) == expected
    assert not list(killed.rglob("*.draft"))
    # Once more: the photo without a text is tried again, and nothing is added twice.
    done = run(killed, killed / "work", **options)
    assert (done.returncode, texts_of(killed, kind)) == (1, expected)
    if existing == "skip":
        assert json.loads(done.stdout)["skipped"] == 49
        assert not folder_of(killed / "work").exists()


def test_errors_are_tried_again_and_texts_of_the_user_stay(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    options: dict[str, Any] = {"sidecar": ["txt", "overwrite"]}
    (photos / "b" / "7.txt").write_bytes(b"caf\xe9")
    assert run(photos, photos / "work", **options).returncode == 1
    assert (photos / "b" / "7.txt").read_text().startswith("a shade of")
    (photos / "a" / "3.txt").write_text("better")
    Image.new("RGB", (2, 2), (0, 0, 200)).save(photos / "b" / "4.png")
    done = run(photos, photos / "work", **options, retry_errors=True)
    assert (done.returncode, json.loads(done.stdout)["errors"]) == (0, 0)
    assert (photos / "a" / "3.txt").read_text() == "better"
    assert (photos / "b" / "4.txt").read_text() == "a shade of 200, with 200\n"
    assert not folder_of(photos / "work").exists()


def test_a_sidecar_that_cannot_be_read_costs_its_photo_alone(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    broken = photos / "b" / "1.png.xmp"
    broken.write_bytes(b"<x>")
    done = run(photos, photos / "work", sidecar=["xmp", "append"])
    counts = json.loads(done.stdout)
    assert (counts["rows"], counts["errors"], broken.read_bytes()) == (4, 1, b"<x>")
    assert counts["problems"][0].startswith(f"{photos}/b/1.png: {broken} is no XMP file in UTF-8 (no element found")
    assert sum(b"a shade of" in content for content in texts_of(photos, "xmp").values()) == 3
    broken.write_bytes(NEW.encode())
    assert json.loads(run(photos, photos / "work", sidecar=["xmp", "append"]).stdout)["errors"] == 0
    assert b"a shade of" in broken.read_bytes()


def test_a_table_with_a_photo_in_two_rows(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    table = tmp_path / "table.csv"
    table.write_text("image,error\nphotos/a/0.png,x\nphotos/b/1.png,\nphotos/a/0.png,y\n,\ngone/5.png,\n")
    done = run(table, place_of(str(table), (1, 1)), sidecar=["txt", "skip"])
    counts = json.loads(done.stdout)
    assert (counts["rows"], counts["errors"], counts["skipped"]) == (4, 2, 1)
    assert counts["problems"][0] == f"{table}, line 5: the row names no image"
    assert texts_of(photos, "txt").keys() == {"a/0.txt", "b/1.txt", "b/2.txt"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["photos", "table.csv"]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files acts as a disk that fills up when a large sidecar is written."""
    whole, photos = make_photos(tmp_path / "whole", 30), make_photos(tmp_path / "photos", 30)
    for folder in (whole, photos):
        (folder / "b" / "20.png.xmp").write_bytes(NEW.encode() + b"<!--" + bytes(40_000).replace(b"\0", b" ") + b"-->")
    run(whole, whole / "work", sidecar=["xmp", "prepend"])

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    line = command(photos, photos / "work", sidecar=["xmp", "prepend"])
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600, preexec_fn=small)
    place = photos / "b" / "20.png.xmp"
    said = f"error: {place} cannot be written (File too large): make room, and give the command again\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert b"a shade" not in place.read_bytes() and not list(photos.rglob("*.draft"))
    assert run(photos, photos / "work", sidecar=["xmp", "prepend"]).returncode == 1
    assert texts_of(photos, "xmp") == texts_of(whole, "xmp")


@pytest.mark.slow
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    whole, photos = make_photos(tmp_path / "whole", 60), make_photos(small_disk / "photos", 60)
    run(whole, whole / "work", sidecar=["txt", "append"])
    ballast, place = small_disk / "ballast", rows_file(photos / "work")
    said = []
    for room in (8_000, 60_000, 120_000):
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        done = run(photos, photos / "work", sidecar=["txt", "append"])
        said.append(done.stderr)
        assert done.returncode == 2 and "cannot be written (No space left on device): make room" in done.stderr
        assert not list(photos.rglob("*.draft"))
        ballast.unlink()
    assert place.stat().st_size > 0 and any("photos/b/" in line or "photos/a/" in line for line in said)
    assert run(photos, photos / "work", sidecar=["txt", "append"]).returncode == 1
    assert texts_of(photos, "txt") == texts_of(whole, "txt")


def plan(source: Path | str, verb: Any = None, **options: Any) -> Any:
    sidecars = Sidecars(options.pop("kind", "txt"), options.pop("existing", "skip"))
    place = place_of(str(source), (1, 1))
    return plan_job(JobOptions(str(source), place, verb or Caption(), {}, {}, sidecars=sidecars, **options))


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    listed = tmp_path / "list.txt"

    def refused(source: Path | str, said: str, verb: Any = None, **options: Any) -> None:
        with pytest.raises(OptionError) as refusal:
            plan(source, verb, **options)
        assert said in str(refusal.value)

    listed.write_text("photos/a/0.png\nhttps://example.org/photo.jpg\n")
    refused(listed, "https://example.org/photo.jpg is a web address, so nothing can lie beside it: give --output FILE")
    refused(photos, "run embed gives no text for a file beside a photo", Embed())
    shutil.copy(photos / "a" / "0.png", tmp_path / "list.png")
    listed.write_text("list.png\n")
    refused(listed, f"{listed}, where the text of {tmp_path}/list.png belongs, is something else")
    shutil.copy(photos / "a" / "0.png", photos / "a" / "0.jpg")
    refused(photos, f"{photos}/a/0.txt would be of two images, {photos}/a/0.png and one of the same name: rename one")
    assert plan(photos, kind="xmp").total == 4
    (photos / "a" / "0.jpg").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != photos / "b")  # root may do anything
    refused(photos, f"{photos / 'b'} cannot be written: change its permissions, or give --output FILE")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.png", "list.txt", "photos"]


def test_what_is_skipped(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 10)
    assert (plan(photos).total, plan(photos).skipped) == (8, 2)
    assert (plan(photos, kind="xmp").total, plan(photos, existing="append").total) == (10, 10)
    text = read_xmp(NEW.encode(), photos).with_properties("mine", None)
    (photos / "b" / "2.png.xmp").write_bytes(text)
    assert (plan(photos, kind="xmp").total, plan(photos, kind="xmp", shard=(1, 2), limit=8).skipped) == (9, 0)
    assert place_of(str(photos / "2019*" / "*.png"), (3, 16)) == photos / "sidecars-3-of-16"
