"""Questions about pages with a real model: each page is encoded once, and answers are the model's own."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import pytest
from PIL import Image

import openblip
from openblip.analysis.question_sets import MEDICAL_WARNING, YES_NO, built_in_sets
from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.images.documents import open_document
from openblip.models.model import Model
from tests.pdf_files import pdf_of

pytest.importorskip("pypdfium2")

ASKED = openblip.QuestionSet(
    "own",
    (
        openblip.Question("What is it?"),
        openblip.Question("Is it red?", YES_NO),
        openblip.Question("How many balls are there?", pages="first"),
        openblip.Question("Is it a dog?", ("yes", "no", "maybe"), pages="2-"),
    ),
    caption=True,
)


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Images that the encoder encodes meanwhile, call by call."""
    encoder, calls = model.components.encoder, list[int]()
    before = encoder.encode_pixels

    def encode(pixels: object) -> object:
        calls.append(len(pixels))  # type: ignore[arg-type]
        return before(pixels)  # type: ignore[arg-type]

    encoder.encode_pixels = encode  # type: ignore[assignment]
    try:
        yield calls
    finally:
        encoder.encode_pixels = before


def test_each_page_is_encoded_once_for_all_that_is_asked(tiny_model: Model, tmp_path: Path) -> None:
    """Captions, written answers and chosen answers, in batches; with no room in the cache, too."""
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([b"/Rotate %d" % turn for turn in (0, 90, 180, 270)] + [b"/MediaBox [0 0 100 200]"]))
    for limit in (tiny_model.image_cache.limit, 0):
        tiny_model.image_cache.clear()
        before, tiny_model.image_cache.limit = tiny_model.image_cache.limit, limit
        try:
            with counted(tiny_model) as calls:
                analysis = openblip.analyze(path, ASKED, model=tiny_model, batch_size=2)
        finally:
            tiny_model.image_cache.limit = before
        assert calls == [2, 2, 1]
        assert [page.page for page in analysis.pages] == [1, 2, 3, 4, 5]
        assert all(len(page.answers) == 3 for page in analysis.pages)


def test_answers_are_those_of_the_model(tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([b"", b"/Rotate 90"]))
    images = []
    with open_document(path) as document:
        for index in range(2):
            with document.page(index, 100) as image:
                images.append(image.copy())
    first, second = openblip.analyze(path, ASKED, model=tiny_model, dpi=100).pages
    assert (first.width, first.height, first.pages, first.source) == (139, 139, 2, str(path))
    assert [first.caption, second.caption] == tiny_model.caption(images)
    assert [answer.question for answer in first.answers] == [one.text for one in ASKED.questions[:3]]
    assert [answer.question for answer in second.answers] == [ASKED.questions[at].text for at in (0, 1, 3)]
    for image, page in zip(images, (first, second), strict=True):
        written = tiny_model.ask(image, "What is it?", details=True)
        assert page.answers[0].answer == written.text
        assert page.answers[0].score == pytest.approx(written.score, abs=1e-4)
        chosen = tiny_model.rank_answers(image, "Is it red?", YES_NO)
        total = sum(math.exp(one.score) for one in chosen)
        assert page.answers[1].answer == chosen[0].answer
        assert page.answers[1].probability == pytest.approx(math.exp(chosen[0].score) / total, abs=1e-4)
    assert first.answers[2].answer == tiny_model.ask(images[0], "How many balls are there?")
    assert second.answers[2].probability is not None and second.answers[2].probability >= 1 / 3


def test_options_and_words(tiny_model: Model, image_paths: list[Path]) -> None:
    """Options of the call go before those of the set; words are found in captions and written answers."""
    asked = openblip.QuestionSet(
        "own", (openblip.Question("What is it?"),), options={"max_new_tokens": 3}, find=built_in_sets()["product"].find
    )
    page = openblip.analyze(image_paths[0], asked, model=tiny_model).pages[0]
    assert page.answers[0].answer == tiny_model.ask(image_paths[0], "What is it?", max_new_tokens=3)
    page = openblip.analyze(image_paths[0], asked, model=tiny_model, max_new_tokens=12).pages[0]
    assert page.answers[0].answer == tiny_model.ask(image_paths[0], "What is it?", max_new_tokens=12)
    assert list(page.found) == ["colors", "materials", "textures"]
    assert page.found["colors"] == tuple(asked.find[0].find(page.answers[0].answer))
    with pytest.raises(OptionError, match="did you mean num_beams"):
        openblip.analyze(image_paths[0], asked, model=tiny_model, num_beam=3)  # type: ignore[call-overload]


def test_one_gives_one_and_several_give_a_list(tiny_model: Model, image_paths: list[Path]) -> None:
    one = openblip.analyze(str(image_paths[0]), ["what is it?"], model=tiny_model)
    assert isinstance(one, openblip.Analysis) and len(one.pages) == 1 and one.warning is None
    several = openblip.analyze((path for path in image_paths[:2]), ["what is it?"], model=tiny_model)
    assert [analysis.source for analysis in several] == [str(path) for path in image_paths[:2]]
    in_memory = openblip.analyze(Image.open(image_paths[0]), ["what is it?"], model=tiny_model)
    assert in_memory.pages[0].answers == one.pages[0].answers


def test_medical_sets_warn_everywhere(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    for name in ("xray", "ct", "mri"):
        analysis = openblip.analyze(image_paths[0], name, model=tiny_model, max_new_tokens=2)
        assert analysis.warning == analysis.pages[0].warning == MEDICAL_WARNING
        for suffix in ("json", "md", "html", "txt"):
            text = analysis.save(tmp_path / f"report.{suffix}").read_text(encoding="utf-8")
            assert "not trained on medical images" in " ".join(text.split())


def test_what_cannot_be_read(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 and no more")
    (tmp_path / "mixed.pdf").write_bytes(pdf_of([b"", b"/MediaBox [0 0 14400 14400]", b""]))
    with pytest.raises(ImageError, match="damaged PDF"):
        openblip.analyze(tmp_path / "bad.pdf", ["what?"], model=tiny_model)
    with pytest.raises(ImageError, match="there are 3 pages"):
        openblip.analyze(tmp_path / "mixed.pdf", ["what?"], model=tiny_model, pages="4-")
    documents = [tmp_path / "bad.pdf", image_paths[0], tmp_path / "mixed.pdf", tmp_path / "gone.png"]
    found = list(openblip.analyze_many(documents, ["what?"], model=tiny_model, batch_size=2))
    assert [(Path(page.source).name, page.page, page.error is None) for page in found] == [
        ("bad.pdf", None, False),
        (image_paths[0].name, 1, True),
        ("mixed.pdf", 1, True),
        ("mixed.pdf", 2, False),
        ("mixed.pdf", 3, True),
        ("gone.png", None, False),
    ]
    assert "--dpi" in str(found[3].error)


def test_a_model_that_lacks_an_ability_is_named(tiny_model: Model, image_paths: list[Path]) -> None:
    compares = copy(tiny_model)
    compares.abilities = ("match", "embed")
    with pytest.raises(
        CheckpointError, match=r"the set product needs a model that can caption, and .* has no language"
    ):
        openblip.analyze(image_paths[0], "product", model=compares)
    with pytest.raises(CheckpointError, match=r"needs a model that can ask, and .*--ability ask` lists others"):
        openblip.analyze(image_paths[0], "document", model=compares)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dpi": 0}, "dpi is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pages": "x"}, "--pages is 'x'"),
        ({"model": "mini"}, "give what openblip.load returns"),
        ({"questions": "documnet"}, "did you mean document?"),
        ({"questions": 3}, "give the name of a set, or a list of questions"),
        ({"questions": []}, "asks nothing"),
        ({"thumbnails": "no"}, "thumbnails is 'no'"),
    ],
)
def test_wrong_arguments(options: dict[str, object], problem: str, tiny_model: Model, image_paths: list[Path]) -> None:
    given = {"questions": ["what?"], "model": tiny_model} | options
    with pytest.raises(OptionError, match=problem.replace("?", r"\?")):
        openblip.analyze(image_paths[0], **given)  # type: ignore[call-overload]


def test_memory_does_not_grow_with_pages(tiny_model: Model, tmp_path: Path) -> None:
    """Pages are drawn a few ahead, and let go of; hundreds of pages more take no megabyte more."""
    turns = [b"/Rotate %d" % (90 * (number % 4)) for number in range(300)]
    path = tmp_path / "long.pdf"
    path.write_bytes(pdf_of(turns))
    pages = openblip.analyze_many(path, openblip.QuestionSet("c", caption=True), model=tiny_model, max_new_tokens=1)
    tracemalloc.start()
    try:
        early = late = 0
        for number, page in enumerate(pages):
            assert page.error is None
            if number == 60:
                early = tracemalloc.get_traced_memory()[0]
            late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late - early < 1 << 20


def test_a_stopped_analysis_closes_its_documents(tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([b"/Rotate %d" % (90 * (number % 4)) for number in range(40)]))
    pages = openblip.analyze_many([path, path], ["what?"], model=tiny_model, batch_size=2)
    assert next(pages).page == 1
    pages.close()  # type: ignore[attr-defined]
    path.unlink()  # Windows refuses this for a file that is open
