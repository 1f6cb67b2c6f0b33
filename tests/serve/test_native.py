"""The server's own endpoints answer what the library answers, on a socket."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import choose_placement
from openblip.models.load import model_of
from openblip.models.model import Model

from .conftest import Served, served_by


def test_a_caption_is_the_librarys(served: Served, tiny_model: Model, image_paths: list[Path]) -> None:
    for path in image_paths:
        answer = served.post("/caption", path).json()
        (expected,) = tiny_model.caption(path, num_captions=1, details=True)
        assert answer == {
            "caption": expected.text,
            "captions": [{"text": expected.text, "score": pytest.approx(expected.score, abs=1e-5)}],
        }


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a photo of", "num_beams": 3},
        {"num_beams": 1, "max_new_tokens": 4},
        {"top_p": 0.9, "seed": 3, "num_captions": 2},
        {"no_repeat_words": True},
        {"top_k": 20, "temperature": 0.7, "seed": 1},
    ],
)
def test_options_are_the_librarys(
    served: Served, tiny_model: Model, image_paths: list[Path], options: dict[str, Any]
) -> None:
    expected = tiny_model.caption(image_paths[0], **{"num_captions": 1, **options})
    answer = served.post("/caption", image_paths[0], **{name: str(value) for name, value in options.items()}).json()
    assert [one["text"] for one in answer["captions"]] == expected


def test_a_question_may_stand_in_the_form_or_in_the_address(
    served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    expected = tiny_model.ask(image_paths[1], "what is this?")
    assert served.post("/caption", image_paths[1], question="what is this?").json()["caption"] == expected
    there = "/caption?question=what+is+this%3F"
    assert served.post(there, image_paths[1]).json()["caption"] == expected


def test_several_questions_have_their_answers_in_order(
    served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    questions = ["what is this?", "how many dogs?", "where is it?", "what is this?"]
    answer = served.post("/ask", image_paths[2], question=questions).json()
    assert [one["text"] for one in answer["answers"]] == tiny_model.ask(image_paths[2], questions)
    assert [one["question"] for one in answer["answers"]] == questions
    assert answer["answer"] == answer["answers"][0]["text"]


def test_a_damaged_file_costs_the_others_of_a_batch_nothing(
    served: Served, tiny_model: Model, image_paths: list[Path]
) -> None:
    answer = served.post("/batch_caption", image_paths[0], b"no image", image_paths[1], field="files").json()
    first, second = tiny_model.caption([image_paths[0], image_paths[1]])
    assert answer["captions"] == [first, None, second]
    assert answer["errors"][0] is answer["errors"][2] is None
    assert "photo.png is not an image" in answer["errors"][1]


def test_match_classify_and_embed_are_the_librarys(served: Served, tiny_model: Model, image_paths: list[Path]) -> None:
    texts = ["a dog", "a red ball"]
    found = served.post("/match", image_paths[0], text=texts).json()["matches"]
    for got, expected in zip(found, tiny_model.match(image_paths[0], texts), strict=True):
        assert got["text"] == expected.text
        assert (got["itm"], got["itc"]) == pytest.approx((expected.itm, expected.itc), abs=1e-5)
    labels = served.post("/classify", image_paths[0], label=["dog", "ball", "beach"]).json()
    best = tiny_model.classify(image_paths[0], ["dog", "ball", "beach"])
    assert [one["label"] for one in labels["labels"]] == [one.label for one in best]
    assert labels["label"] == best[0].label
    assert sum(one["probability"] for one in labels["labels"]) == pytest.approx(1)
    vectors = served.post("/embed", *image_paths[:2], field="files", text=texts).json()
    np.testing.assert_allclose(vectors["images"], tiny_model.embed_images(image_paths[:2]), atol=1e-5)
    np.testing.assert_allclose(vectors["texts"], tiny_model.embed_texts(texts), atol=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(served: Served, tiny_model: Model, image_paths: list[Path], form: str) -> None:
    file = io.BytesIO()
    Image.open(image_paths[0]).convert("RGB").save(file, form)
    assert served.post("/caption", file.getvalue()).json()["caption"] == tiny_model.caption(file.getvalue())


def refused(answer: Any, status: int, code: str) -> str:
    """The sentence of a refusal, in the one shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["code"] == code
    assert body["request_id"] == answer.headers["x-request-id"]
    message: str = body["error"]["message"]
    assert "Traceback" not in message
    return message


def test_what_is_wrong_with_an_image_is_said(served: Served) -> None:
    icon = io.BytesIO()
    Image.new("RGB", (32, 32)).save(icon, "ICO")
    assert "takes JPEG, PNG" in refused(served.post("/caption", icon.getvalue()), 415, "formats")
    assert "a PDF document" in refused(served.post("/caption", b"%PDF-1.7 and so on"), 415, "formats")
    refused(served.post("/caption", b""), 422, "bad_image")
    cut = io.BytesIO()
    Image.effect_noise((400, 400), 80).save(cut, "JPEG")
    assert "cut short" in refused(served.post("/caption", cut.getvalue()[:9000]), 422, "bad_image")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    said = refused(served.post("/caption", bomb.getvalue()), 413, "megapixels")
    assert "9000 x 9000" in said and "--limit megapixels=VALUE" in said


def test_what_is_wrong_with_a_form_is_said(served: Served, image_paths: list[Path]) -> None:
    photo = image_paths[0]
    post = served.post
    assert "num_beams is 'two'" in refused(post("/caption", photo, num_beams="two"), 422, "wrong_field")
    assert "use num_beams" in refused(post("/caption", photo, num_beam="2"), 422, "unknown_field")
    refused(served.http.post("/caption", data={"question": "what?"}), 422, "files_missing")
    refused(served.http.post("/caption", json={"question": "what?"}), 415, "no_form")
    refused(post("/caption", photo, photo), 422, "files_missing")
    refused(post("/ask", photo), 422, "missing_field")
    refused(post("/embed", x="1"), 422, "unknown_field")
    refused(served.http.post("/embed", data={"text": []}), 422, "nothing")
    refused(post("/caption", photo, num_beams="9"), 422, "beams")
    refused(post("/caption", photo, max_new_tokens="257"), 422, "new_tokens")
    refused(post("/caption", photo, num_captions="5"), 422, "captions")
    refused(post("/caption", photo, prompt="long " * 401), 422, "text_chars")
    refused(post("/ask", photo, question=["why?"] * 65), 422, "texts")
    refused(post("/batch_caption", *[photo] * 17, field="files"), 413, "files")
    refused(post("/ask", photo, question="  "), 422, "bad_option")
    refused(post("/caption", photo, top_p="0.9", num_beams="3"), 422, "bad_option")
    refused(post("/classify", photo, label="dog", template="a photo"), 422, "bad_option")
    several = {"label": [f"dog {number}" for number in range(33)], "template": ["a {}", "the {}", *["one {}"] * 6]}
    refused(post("/classify", photo, **several), 422, "label_texts")
    assert "--limit fields=VALUE" in refused(post("/match", photo, **{f"f{n}": "x" for n in range(17)}), 413, "fields")


def test_unknown_paths_and_methods_have_the_same_shape(served: Served) -> None:
    refused(served.http.get("/nothing"), 404, "not_found")
    refused(served.http.get("/caption"), 405, "method_not_allowed")
    refused(served.http.post("/health"), 405, "method_not_allowed")
    assert served.http.get("/health").json() == {"status": "ok"}
    assert served.http.get("/ready").json() == {"ready": True, "model": served.service.name}


def test_the_clients_own_request_id_comes_back(served: Served) -> None:
    assert served.http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for harmful in ("a b", "x" * 65, "<b>"):
        assert served.http.get("/health", headers={"X-Request-Id": harmful}).headers["x-request-id"] != harmful


def test_texts_alone_are_embedded_from_a_plain_form(served: Served, tiny_model: Model) -> None:
    found = served.http.post("/embed", data={"text": ["a dog", "ball & beach"]}).json()
    np.testing.assert_allclose(found["texts"], tiny_model.embed_texts(["a dog", "ball & beach"]), atol=1e-5)
    assert found["images"] == []


def test_a_model_without_the_ability_says_so(tiny_parts: ModelParts, image_paths: list[Path]) -> None:
    silent = model_of(replace(tiny_parts, tokenizer=None), choose_placement("cpu", None))
    with served_by(silent) as one:
        for path in ("/caption", "/batch_caption", "/ask"):
            said = refused(one.post(path, image_paths[0], question="what?"), 422, "no_such_ability")
            assert "has no language model" in said and "it can match, embed, classify" in said
        assert one.post("/match", image_paths[0], text="a dog").status_code == 200
