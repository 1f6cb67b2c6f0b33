"""An index of real files in real LanceDB: what is kept up to date, what is found, and what other processes see."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openblip
from openblip.data.sample import Sample
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.settings import RetrievalSettings, Settings, Task
from openblip.evaluation.tasks.retrieval import evaluate_retrieval
from openblip.models.model import Model
from openblip.search import Changes, Index
from openblip.search import index as index_module
from tests import warm
from tests.search.test_scan import clustered, queries_for

pytest.importorskip("lancedb")


@pytest.fixture
def photos(image_paths: list[Path], tmp_path: Path) -> Path:
    """Five photos, one of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for path in image_paths[:4]:
        shutil.copy2(path, folder)
    shutil.copy2(image_paths[4], folder / "more")
    return folder


def changes(changed: Changes) -> dict[str, int]:
    told = {name: value for name, value in vars(changed).items() if value}
    return told | ({"errors": len(changed.errors)} if changed.errors else {})


def names(index: Index) -> set[str]:
    return {Path(entry.path).name for entry in index._store.entries()}


def test_it_finds_what_the_model_finds(tiny_model: Model, photos: Path, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "db", model=tiny_model)
    assert changes(index.add(photos)) == {"new": 5}
    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    wanted = tiny_model.rank_images("a dog", paths, rerank=3)
    found = index.search("a dog", rerank=3)
    assert [(one.path, one.itm) for one in found] == [(one.source, one.itm) for one in wanted]
    assert [one.itc for one in found] == pytest.approx([one.itc for one in wanted], abs=2e-4)
    by_itc = index.search("a dog", rerank=0, top=3)
    assert [one.path for one in by_itc] == [
        one.source for one in tiny_model.rank_images("a dog", paths, rerank=0, top=3)
    ]
    assert [one.itm for one in by_itc] == [None] * 3 and by_itc[0].score == by_itc[0].itc
    least = by_itc[1].score
    assert index.search("a dog", rerank=0, min_score=least) == by_itc[:2]
    like = index.search(image=paths[2], top=2)
    assert like[0].path == paths[2] and like[0].score == pytest.approx(1, abs=1e-3)
    assert [one.path for one in Index.open(tmp_path / "db", model=tiny_model).search("a dog", rerank=3)] == [
        one.path for one in found
    ]


def test_unwanted_words(tiny_model: Model, photos: Path, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "db", model=tiny_model)
    index.add(photos)
    paths = sorted(photos.rglob("*.png"))
    itc = tiny_model.scores(paths, ["a dog", "a ball", "the red beach"]).itc
    left = itc[:, 0] - itc[:, 1:].amax(dim=1)
    order = [place for place in left.argsort(descending=True).tolist() if left[place] >= 0]
    found = index.search("a dog", without=["a ball", "the red beach"], rerank=0)
    assert [one.path for one in found] == [str(paths[place]) for place in order]
    fits = {str(path) for path, row in zip(paths, itc.tolist(), strict=True) if row[0] >= row[1]}
    shown = {path for path in fits if tiny_model.match(path, "a ball").itm < 0.5}  # type: ignore[operator]
    assert {one.path for one in index.search("a dog", without="a ball")} == shown


def test_only_what_is_new_is_encoded(tiny_model: Model, photos: Path, image_paths: list[Path], tmp_path: Path) -> None:
    db = tmp_path / "db"
    index = Index.open(db, model=tiny_model)
    index.add(photos)
    before = index.search("a dog", rerank=0)
    assert changes(Index.open(db, model=None).add([photos])) == {"same": 5}  # no model is loaded

    (photos / "photo1.png").rename(photos / "renamed.png")  # moved
    shutil.copy(photos / "photo2.png", photos / "copy.png")  # a copy
    os.utime(photos / "photo3.png")  # touched
    Image.new("RGB", (50, 40), "red").save(photos / "photo4.png")  # changed
    shutil.copy(photos / "photo4.png", photos / "twin.png")  # the same content twice, new both times
    (photos / "more" / "photo5.png").unlink()
    assert changes(index.add(photos)) == {"moved": 1, "copied": 2, "same": 2, "changed": 1, "gone": 1}
    assert names(index) == {"renamed.png", "photo2.png", "copy.png", "photo3.png", "photo4.png", "twin.png"}
    assert len(index) == index._store.count() == 6
    scores = {Path(one.path).name: one.score for one in index.search("a dog", rerank=0)}
    assert scores["renamed.png"] == next(one.score for one in before if one.path.endswith("photo1.png"))
    assert scores["copy.png"] == scores["photo2.png"] and scores["photo4.png"] == scores["twin.png"]
    assert changes(index.add(photos)) == {"same": 6}

    groups = index.duplicates(min_similarity=1)
    assert sorted(sorted(Path(one.path).name for one in group) for group in groups) == [
        ["copy.png", "photo2.png"], ["photo4.png", "twin.png"],
    ]  # fmt: skip


def test_nothing_leaves_but_what_is_gone_from_a_named_folder(
    tiny_model: Model, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index.open(tmp_path / "db", model=tiny_model)
    index.add(photos)
    (photos / "photo1.png").unlink()
    (photos / "more" / "photo5.png").unlink()
    assert changes(index.add(photos / "photo2.png")) == {"same": 1}
    assert len(index) == 5
    with caplog.at_level(logging.WARNING):
        assert len(index.search("a dog", rerank=0)) == 3
    assert "2 photos that fit are gone" in caplog.text
    with pytest.raises(ImageError, match="no image in this folder"):
        index.add(photos / "more")  # perhaps a disk that is not there
    shutil.rmtree(photos / "more")
    with pytest.raises(ImageError, match="no such file or folder"):
        index.add(photos / "more")
    assert len(index) == 5
    assert changes(index.add([photos])) == {"same": 3, "gone": 2}
    (photos / "photo2.png").unlink()
    assert index.prune() == 1 and len(index) == 2


def test_photos_that_cannot_be_read(tiny_model: Model, photos: Path, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "db", model=tiny_model)
    (photos / "a.jpg").write_bytes(b"no image")
    (photos / "b.jpg").write_bytes(b"no image")
    (photos / "c.jpg").symlink_to(photos / "nowhere.jpg")
    done = index.add(photos, batch_size=2)
    assert changes(done) == {"new": 5, "errors": 3}
    assert sorted(Path(error.source).name for error in done.errors) == ["a.jpg", "b.jpg", "c.jpg"]
    content = (photos / "photo1.png").read_bytes()
    (photos / "photo1.png").write_bytes(content[:200])
    assert changes(index.add(photos)) == {"same": 4, "errors": 4}
    assert "photo1.png" not in names(index)
    (photos / "photo1.png").write_bytes(content)
    assert changes(index.add(photos / "photo1.png")) == {"new": 1}


def test_near_duplicates(photos: Path, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    model = openblip.load("mini")
    for number, path in enumerate(sorted(examples.glob("*.jpg"))[:3]):
        shutil.copy(path, photos / f"{number}.jpg")
    with Image.open(photos / "2.jpg") as image:
        image.convert("RGB").save(photos / "squeezed.jpg", quality=50)
    index = Index.open(tmp_path / "db", model=model)
    index.add(str(photos / "*.jpg"))
    (group,) = index.duplicates()
    assert [Path(one.path).name for one in group] == ["2.jpg", "squeezed.jpg"]
    assert group[0].score == 1 and 0.95 <= group[1].score < 1


def test_another_model_is_refused(
    tiny_model: Model, tiny_model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "db"
    monkeypatch.chdir(tiny_model_folder.parent)
    Index.open(db, model=tiny_model_folder.name).add(photos)
    monkeypatch.chdir(tmp_path)
    assert Index.open(db).search("a dog", rerank=0)  # the model of the index, by its absolute path
    assert Index.open(db, model=tiny_model).search("a dog", rerank=0)  # the same one under another name
    for refused in (lambda index: index.search("a dog"), lambda index: index.add(photos)):
        with pytest.raises(OpenBlipError, match=r"was made with the model .*tiny, and this is mini"):
            refused(Index.open(db, model="mini"))
    changed = shutil.copytree(tiny_model_folder, tmp_path / "tiny")
    weights = openblip.load(changed)
    with torch.no_grad():
        for parameter in weights.network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    with pytest.raises(OpenBlipError, match="was made with the model"):
        Index.open(db, model=weights).search("a dog")


def test_above_the_bound_the_index_proposes_and_vectors_decide(tiny_model: Model, tmp_path: Path) -> None:
    """Recall of the ten best of 3,000 images, with LanceDB's index of 8 bits a number."""
    from openblip.search.store import Entry, Note, Store

    vectors = clustered(3000, 4)
    store = Store(tmp_path / "db")
    with store.held():
        store.create(Note({"name": "none"}, 4, 256, []))
        entries = [Entry(number, f"{tmp_path}/{number}", 1, 1, bytes(32)) for number in range(3000)]
        for start in range(0, 3000, 500):
            store.append(entries[start : start + 500], vectors[start : start + 500])
        store.tidy(indexed_above=2000)
    index = Index.open(tmp_path / "db", model=tiny_model)
    hits = 0
    for query in queries_for(vectors, 20)[:, None]:
        numbers = store.candidates(query, index_module.CANDIDATES, index_module.PROBES)
        assert numbers is not None and len(numbers) < 3000
        there, found = store.take(numbers)
        scores = (found.float() @ query.T).amax(dim=1)[:, 0]
        best = {there[row] for row in scores.topk(10).indices.tolist()}
        hits += len(best & set((vectors @ query.T).amax(dim=1)[:, 0].topk(10).indices.tolist()))
    assert hits >= 0.99 * 200
    assert len(index) == 3000


DRIVER = """
import sys, time
import torch
import openblip.search.update
from openblip.results import Embedded
from openblip.search import Index

openblip.search.update.KEPT = 3

class Slow:
    name = "slow"
    abilities = ("embed",)
    def embed_texts(self, texts):
        return torch.ones(8) / 8**0.5
    def embed_images(self, image):
        return torch.ones(2, 8) / 8**0.5
    def embed_images_many(self, images, batch_size):
        for number, content in enumerate(images):
            if number == int(sys.argv[3]):
                time.sleep(600)  # to be killed
            shades = torch.tensor([len(content), *content[60:67]], dtype=torch.float32)
            yield Embedded("", torch.nn.functional.normalize(shades, dim=0).expand(2, 8))

index = Index.open(sys.argv[1], model=Slow())
print(index.add(sys.argv[2]).new, len(index), flush=True)
"""


def test_killed_and_read_and_refused_while_it_works(tmp_path: Path) -> None:
    photos, db = tmp_path / "photos", tmp_path / "db"
    photos.mkdir()
    for number in range(60):
        Image.new("RGB", (8 + number, 4), (number, 0, 0)).save(photos / f"{number}.png")
    command = ["-c", DRIVER, str(db), str(photos)]
    with warm.Process([*command, "20"], stderr=subprocess.PIPE) as process:
        reader, seen = Index.open(db), 0
        until = time.monotonic() + 600
        while process.poll() is None and seen < 18 and time.monotonic() < until:
            if (db / "openblip.json").exists():
                seen = reader.status().images
            time.sleep(0.02)
        with pytest.raises(OpenBlipError, match=rf"another command is changing the index .* \(process {process.pid}\)"):
            reader.prune()
        process.kill()
    assert seen == 18  # of 20, in threes
    done = warm.run([*command, "60"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["42", "60"]
    assert reader.status().images == 60
    assert len(list((db / "images.lance").rglob("*"))) < 12  # pieces of the interrupted run are gone


def test_faults_are_sentences(tiny_model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="there is no index in"):
        Index.open(tmp_path / "none", model=tiny_model).search("a dog")
    with pytest.raises(OptionError, match="is no index, it holds"):
        Index.open(photos)
    db = tmp_path / "db"
    index = Index.open(db, model=tiny_model)
    with pytest.raises(OptionError, match="is a web address"):
        index.add("https://example.com/a.jpg")
    index.add(photos)
    both, empty = {"text": "a", "image": photos / "photo1.png"}, {"text": "a", "without": ["b", ""]}
    for wrong in ({}, both, {"text": "a", "top": 0}, {"text": " "}, empty):
        with pytest.raises(OptionError):
            index.search(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        index.search(image=photos / "none.png")
    for path in sorted((db / "images.lance" / "data").iterdir()):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OpenBlipError, match="cannot be read or written"):
        Index.open(db, model=tiny_model).search("a dog")
    shutil.rmtree(db / "images.lance" / "_versions")
    with pytest.raises(OpenBlipError, match="cannot be read or written"):
        Index.open(db, model=tiny_model).search("a dog")
    (db / "openblip.json").write_text('{"format": 1}')
    with pytest.raises(OpenBlipError, match=r"openblip\.json cannot be read"):
        Index.open(db, model=tiny_model)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OpenBlipError, match=r'pip install "openblip\[search\]"'):
        Index.open(tmp_path / "none")


def test_recall_is_that_of_the_evaluation(tiny_model: Model, tmp_path: Path) -> None:
    """Text to image, with and without ITM, over images that have several texts each."""
    check_recall(tiny_model, write_described(tmp_path / "photos", 12), tmp_path / "db", rerank=4)


@pytest.mark.real
@pytest.mark.parametrize("images", [60])
def test_recall_on_flickr8k(images: int, tmp_path: Path) -> None:
    """The bundled model on real captions; the folder of the data is OPENBLIP_FLICKR8K."""
    folder = Path(os.environ.get("OPENBLIP_FLICKR8K", "data/flickr8k"))
    if not (folder / "captions.jsonl").is_file():
        pytest.skip(f"there is no {folder}")
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "val"][:images]
    samples = [Sample((folder / row["image"],), row["image"], captions=tuple(row["captions"])) for row in rows]
    check_recall(openblip.load("mini"), samples, tmp_path / "db", rerank=8)


def write_described(folder: Path, count: int) -> list[Sample]:
    folder.mkdir()
    random = np.random.default_rng(5)
    words = ["dog", "ball", "beach", "child", "red", "runs", "two", "plays"]
    samples = []
    for number in range(count):
        path = folder / f"{number:02}.png"
        Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((64, 64)).save(path)
        texts = tuple(" ".join(random.choice(words, 4)) for _ in range(2))
        samples.append(Sample((path,), str(number), captions=texts))
    return samples


def check_recall(model: Model, samples: list[Sample], db: Path, rerank: int) -> None:
    index = Index.open(db, model=model)
    index.add([str(sample.image) for sample in samples])
    texts = [(text, str(sample.image)) for sample in samples for text in sample.captions]
    for matched in (0, rerank):
        settings = Settings(Task.RETRIEVAL, retrieval=RetrievalSettings(rerank=matched))
        wanted = evaluate_retrieval(model, samples, settings, Journal(), lambda done, total: None).metrics
        found = [
            ([os.path.abspath(one.path) for one in index.search(text, top=10, rerank=matched)], os.path.abspath(image))
            for text, image in texts
        ]
        for depth in (1, 5, 10):
            share = sum(image in paths[:depth] for paths, image in found) / len(found)
            assert share == pytest.approx(wanted[f"text_to_image_at_{depth}"], abs=1e-9), (matched, depth)
