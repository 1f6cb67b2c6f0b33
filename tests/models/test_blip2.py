"""The object a user holds, on a random model: shapes, sources, options and errors."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openblip
from openblip.checkpoints.model_parts import ModelParts
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.images.decode import load_image
from openblip.images.sources import image_list
from openblip.images.transform import to_pixels
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.results import GeneratedText
from tests.pairs.prompts import visual_prompt


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    return path


@pytest.fixture
def server(image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine that serves the images."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(image_paths[0].parent))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def count_looks(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images whenever the image encoder runs; images seen before are forgotten."""
    model.image_cache.clear()
    seen: list[int] = []
    encode = model.network.image_features

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.shape[0])
        return encode(pixels)

    monkeypatch.setattr(model.network, "image_features", counted)
    return seen


def with_weights_of(parts: ModelParts, config: Blip2Config) -> Blip2Network:
    """A network that has some of another's parts."""
    network, state = Blip2Network(config), parts.network.state_dict()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


def ascii_of(text: str) -> str:
    return "".join(letter for letter in text if letter.isascii() and not letter.isspace())


# Captions


def test_caption_gives_back_what_it_was_given(tiny_model: Model, image_paths: list[Path]) -> None:
    one = tiny_model.caption(image_paths[0])
    three = tiny_model.caption(image_paths[0], num_captions=3)
    many = tiny_model.caption(image_paths)
    many_of_two = tiny_model.caption(image_paths[:2], num_captions=2)
    assert isinstance(one, str)
    assert one
    assert isinstance(three, list)
    assert len(set(three)) == 3
    assert isinstance(many, list)
    assert all(isinstance(caption, str) for caption in many)
    assert [len(captions) for captions in many_of_two] == [2, 2]
    assert three[0] == one == many[0] == many_of_two[0][0]
    assert tiny_model.caption(image_paths[0], num_captions=1) == [one]
    assert tiny_model.caption([]) == []


def test_a_batch_says_what_single_images_say(tiny_model: Model, image_paths: list[Path]) -> None:
    singles = [tiny_model.caption(image_path) for image_path in image_paths]
    assert len(set(singles)) > 1, "the test model must tell images apart"
    assert tiny_model.caption(image_paths) == singles
    found = list(tiny_model.caption_many(image_paths, batch_size=2))
    assert [captioned.text for captioned in found] == singles
    assert [captioned.source for captioned in found] == [str(image_path) for image_path in image_paths]


def test_captions_come_best_first_with_scores_and_tokens(tiny_model: Model, image_paths: list[Path]) -> None:
    (captioned,) = tiny_model.caption_many(image_paths[:1], num_captions=3)
    scores = [caption.score for caption in captioned.captions]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 0
    for caption in captioned.captions:
        assert len(caption.tokens) == len(caption.log_probs) >= 2
        assert max(caption.log_probs) <= 0
        # bytes of one character may lie in several tokens, and show only in the whole text
        assert ascii_of("".join(caption.tokens)) == ascii_of(caption.text) != ""


def test_length_penalty_counts(tiny_model: Model, image_paths: list[Path]) -> None:
    def score(**options: Any) -> float:
        (captioned,) = tiny_model.caption_many(image_paths[:1], **options)
        return captioned.captions[0].score

    assert score(length_penalty=0.0) < score() == score(length_penalty=1.0) < score(length_penalty=2.0) < 0


def test_caption_many_is_lazy(tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count_looks(tiny_model, monkeypatch)
    found = tiny_model.caption_many(iter(image_paths), batch_size=2)
    assert looks == []
    next(found)
    assert looks == [2]
    assert len(list(found)) == 4
    assert looks == [2, 2, 1]


def test_the_prompt_leads_and_is_not_repeated(tiny_model: Model, image_paths: list[Path]) -> None:
    plain = tiny_model.caption(image_paths[0])
    prompted = tiny_model.caption(image_paths[0], prompt="two children play with")
    assert prompted != plain
    assert not prompted.startswith("two children")
    prompts = replace(tiny_model.parts.prompts, caption="two children play with")
    other = model_of(replace(tiny_model.parts, prompts=prompts), tiny_model.placement)
    assert other.caption(image_paths[0]) == prompted


def test_token_limits_count_new_tokens_alone(tiny_model: Model, image_paths: list[Path]) -> None:
    long_prompt = "a dog runs on the beach and two children play with a red ball"
    for limits in ({"max_new_tokens": 3}, {"min_new_tokens": 20, "max_new_tokens": 20}):
        (found,) = tiny_model.caption_many(image_paths[:1], prompt=long_prompt, **limits)
        length = len(found.captions[0].tokens)
        assert limits.get("min_new_tokens", 0) <= length <= limits["max_new_tokens"]


def test_draws_repeat_with_a_seed(tiny_model: Model, image_paths: list[Path]) -> None:
    def draw(**seed: Any) -> list[str]:
        return tiny_model.caption(image_paths, temperature=1.5, **seed)

    first = draw(seed=1)
    torch.rand(3)
    assert draw(seed=1) == first
    assert draw(seed=2) != first
    assert len({tuple(draw()) for _ in range(4)}) > 1
    with pytest.raises(OptionError, match="give top_p, top_k or temperature"):
        tiny_model.caption(image_paths, seed=1)


# Images


def test_every_kind_of_source_gives_the_same_caption(tiny_model: Model, image_paths: list[Path], server: str) -> None:
    image_path = image_paths[1]
    expected = tiny_model.caption(image_path)
    with Image.open(image_path) as opened, image_path.open("rb") as file:
        image = opened.convert("RGB")
        sources = [
            str(image_path),
            image_path.read_bytes(),
            file,
            image,
            np.asarray(image),
            f"{server}/{image_path.name}",
        ]
        assert tiny_model.caption(sources) == [expected] * len(sources)


def test_a_bad_image_is_named(tiny_model: Model, image_paths: list[Path], broken: Path, server: str) -> None:
    bad: list[tuple[Any, str]] = [
        (broken, str(broken)),
        ("nowhere.png", "nowhere.png"),
        (b"", "<0 bytes>"),
        (f"{server}/gone.png?key=secret", f"{server}/gone.png?…: the server answered 404"),
    ]
    for source, shown in bad:
        for call in (tiny_model.caption, tiny_model.chat, lambda s: tiny_model.match(s, "a dog")):
            with pytest.raises(ImageError) as caught:
                call(source)
            assert str(caught.value).startswith(shown)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        tiny_model.caption([image_paths[0], broken, image_paths[1]])
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        tiny_model.embed_images([image_paths[0], broken])


def test_caption_many_keeps_errors_in_place(tiny_model: Model, image_paths: list[Path], broken: Path) -> None:
    sources: list[Path | str] = [broken, image_paths[0], broken, "nowhere.png", image_paths[1], broken]
    found = list(tiny_model.caption_many(sources, batch_size=3))
    assert [captioned.error is None for captioned in found] == [False, True, False, False, True, False]
    assert [found[1].text, found[4].text] == [tiny_model.caption(image_paths[0]), tiny_model.caption(image_paths[1])]
    assert found[3].source == "nowhere.png"
    assert found[3].captions == ()
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        _ = found[3].text


def test_a_lone_string_is_one_thing(tiny_model: Model, image_paths: list[Path]) -> None:
    image_path = str(image_paths[0])
    assert [found.source for found in tiny_model.caption_many(image_path)] == [image_path]
    assert torch.equal(tiny_model.embed_images(image_path), tiny_model.embed_images([image_path])[0])
    assert torch.equal(tiny_model.embed_texts("a dog"), tiny_model.embed_texts(["a dog"])[0])
    assert isinstance(tiny_model.ask(image_path, "how many dogs?", details=True), GeneratedText)
    assert isinstance(tiny_model.generate(image_path, "a photo of"), str)
    assert [found.answers for found in tiny_model.ask_many([(image_path, "how many dogs?")])] == [
        (tiny_model.ask(image_path, "how many dogs?", details=True),)
    ]
    assert tiny_model.scores(image_path, "a dog").itc.shape == (1, 1)
    assert (
        len(tiny_model.rank_texts(image_path, "a dog")) == 1 and len(tiny_model.rank_images("a dog", image_path)) == 1
    )


ABOUT_IMAGES: dict[str, Callable[[Model, Any], Any]] = {
    "caption": lambda model, images: model.caption(images, batch_size=2),
    "caption_many": lambda model, images: [found.text for found in model.caption_many(images)],
    "ask": lambda model, images: model.ask(images, ("what is it?", "why?"), batch_size=2),
    "ask_many": lambda model, images: [
        found.answers[0].text for found in model.ask_many((image, "why?") for image in image_list(images))
    ],
    "generate": lambda model, images: model.generate(images, iter(["a dog", "a"]), batch_size=2),
    "match": lambda model, images: model.match(images, "a dog"),
    "match_many": lambda model, images: [found.matches for found in model.match_many(images, ["a", "b"])],
    "scores": lambda model, images: model.scores(images, "a dog", itm=True),
    "classify": lambda model, images: model.classify(images, {"dog", "ball"}),
    "classify_many": lambda model, images: [found.labels for found in model.classify_many(images, ["dog", "ball"])],
    "rank_images": lambda model, images: [found.index for found in model.rank_images("a dog", images)],
    "rank_texts": lambda model, images: model.rank_texts(images, ("a dog", "a ball")),
    "rank_both": lambda model, images: [[one.index for one in row] for row in model.rank_both(images, "a dog").images],
    "embed_images": lambda model, images: model.embed_images(images),
    "embed_images_many": lambda model, images: [found.embeds for found in model.embed_images_many(images)],
}
"""Every method of a model that takes images; `encode_image` and `chat` take one."""
RESULTS_OF_ONE = ("caption", "ask", "generate", "match", "classify", "rank_texts", "embed_images")
"""Those whose result for one image is not a list of one."""


def flat(found: Any) -> list[Any]:
    """Its texts and numbers in order, with a bracket at the beginning and end of each list."""
    if isinstance(found, torch.Tensor):
        return flat(found.tolist())
    if is_dataclass(found):
        return flat([getattr(found, one.name) for one in fields(found) if one.name not in ("source", "index")])
    if isinstance(found, list | tuple):
        return ["[", *(value for one in found for value in flat(one)), "]"]
    return [found]


def alike(found: Any, expected: Any) -> bool:
    """Numbers may differ in their last places, as batches of another size change them."""
    ours, theirs = flat(found), flat(expected)
    numbers = [[value for value in values if isinstance(value, float)] for values in (ours, theirs)]
    others = [[type(value) if isinstance(value, float) else value for value in values] for values in (ours, theirs)]
    return others[0] == others[1] and numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_every_method_is_among_these() -> None:
    public = {name for name, value in vars(Model).items() if callable(value) and not name.startswith("_")}
    # rank_answers, heatmap and judge take one image or are a BLIP's own; they are tested apart.
    own = {"rank_answers", "heatmap", "judge", "judge_many"}
    assert public == {*ABOUT_IMAGES, *own, "encode_image", "chat", "decode_session", "embed_texts", "save"}


@pytest.mark.parametrize("name", ABOUT_IMAGES)
def test_any_image_alone_and_any_iterable_of_images(tiny_model: Model, image_paths: list[Path], name: str) -> None:
    def kinds(image_path: Path) -> Iterator[Any]:
        with Image.open(image_path) as opened:
            image = opened.convert("RGB")
        yield from (
            image_path,
            str(image_path),
            image_path.read_bytes(),
            io.BytesIO(image_path.read_bytes()),
            image,
            np.asarray(image),
        )
        yield tiny_model.encode_image(image_path)

    call = ABOUT_IMAGES[name]
    alone = call(tiny_model, image_paths[0])
    for image in kinds(image_paths[0]):
        assert alike(call(tiny_model, image), alone)
        assert tiny_model.chat(image).ask("why?") == tiny_model.ask(image_paths[0], "why?")
    sources = [image for image_path in image_paths[:2] for image in kinds(image_path)]
    expected = call(tiny_model, [image_path for image_path in image_paths[:2] for _ in kinds(image_path)])
    if name in RESULTS_OF_ONE:
        assert alike(expected, [alone] * 7 + [call(tiny_model, image_paths[1])] * 7)
    for several in (list, tuple, iter, deque, lambda given: (one for one in given)):
        assert alike(call(tiny_model, several(sources)), expected)
    keys = dict.fromkeys(image_paths[:2]).keys()
    assert alike(call(tiny_model, keys), call(tiny_model, image_paths[:2]))


@pytest.mark.parametrize("several", [list, tuple, iter, set, deque, lambda given: (one for one in given)])
def test_any_iterable_of_texts_is_several(tiny_model: Model, image_paths: list[Path], several: Any) -> None:
    texts = ["a dog"] if several is set else ["a dog", "a ball"]  # a set has its own order
    assert tiny_model.ask(image_paths[0], several(texts)) == [tiny_model.ask(image_paths[0], text) for text in texts]
    assert tiny_model.generate(image_paths[0], several(texts)) == [
        tiny_model.generate(image_paths[0], text) for text in texts
    ]
    for call in (
        lambda given: tiny_model.ask(image_paths[0], given),
        lambda given: tiny_model.generate(image_paths[:2], given),
        lambda given: tiny_model.match(image_paths[0], given),
        lambda given: tiny_model.scores(image_paths, given),
        lambda given: tiny_model.classify(image_paths[0], given, templates=several(["the {}"])),
        lambda given: tiny_model.rank_texts(image_paths[0], given),
        lambda given: tiny_model.rank_images(given, image_paths),
        lambda given: tiny_model.embed_texts(given),
        lambda given: [found.questions for found in tiny_model.ask_many([(image_paths[0], given)])],
    ):
        assert alike(call(several(texts)), call(texts))


def test_what_is_neither_one_nor_several_is_named(tiny_model: Model, image_paths: list[Path]) -> None:
    with pytest.raises(ImageError, match="an object of type int is no image"):
        tiny_model.caption(3)  # type: ignore[call-overload]
    for wrong in (
        lambda: tiny_model.embed_texts(3),  # type: ignore[arg-type]
        lambda: tiny_model.ask(image_paths[0], ["why?", 3]),  # type: ignore[list-item]
        lambda: tiny_model.match(image_paths[0], None),  # type: ignore[call-overload]
    ):
        with pytest.raises(OptionError, match=r"give a text, or several|give texts alone"):
            wrong()


# Answers


def test_several_questions_are_answered_as_one_by_one(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["what color is the ball?", "How many children are there", "why?"]
    singles = [tiny_model.ask(image_paths[0], question) for question in questions]
    looks = count_looks(tiny_model, monkeypatch)
    assert tiny_model.ask(image_paths[0], questions) == singles
    assert looks == [1]
    assert tiny_model.ask(image_paths[0], []) == []


def test_questions_are_asked_in_the_models_words(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = replace(tiny_model.parts.prompts, question="{question} Short answer:")
    model = model_of(replace(tiny_model.parts, prompts=prompts), tiny_model.placement)
    expected = tiny_model.generate(image_paths[0], ["how many dogs? Short answer:"], details=True)
    assert model.ask(image_paths[0], ["How many dogs"], details=True) == expected


@pytest.mark.parametrize("question", ["", "  \n", "?"])
def test_an_empty_question_is_refused(tiny_model: Model, image_paths: list[Path], question: str) -> None:
    with pytest.raises(OptionError, match="question is empty"):
        tiny_model.ask(image_paths[0], question)
    with pytest.raises(OptionError, match="question is empty"):
        tiny_model.chat(image_paths[0]).ask(question)


# Matching and features


def test_match_is_what_the_network_says(tiny_model: Model, image_paths: list[Path]) -> None:
    texts = ["a dog runs on the beach", "Ball!", "two children, a red ball and the dog on the beach"]
    network, matching = tiny_model.network, tiny_model.parts.matching
    assert matching is not None
    found = tiny_model.match(image_paths[0], texts)
    features = network.image_features(to_pixels([load_image(image_paths[0])], tiny_model.parts.transform))
    with torch.no_grad():
        for match, text in zip(found, texts, strict=True):
            ids = torch.tensor([matching.encode(text.lower().replace("!", ""))])
            itm = network.itm_logits(ids, None, features).softmax(dim=1)[0, 1]
            image = network.project_queries(network.qformer.image(features))[0]
            itc = (image @ network.project_text(network.qformer.text(ids))[0]).max()
            assert match.text == text
            assert match.itm == pytest.approx(itm.item(), abs=1e-5)
            assert match.itc == pytest.approx(itc.item(), abs=1e-5)
    assert len({round(match.itm, 4) for match in found}) == 3
    assert tiny_model.match(image_paths[0], texts[1]).itm == pytest.approx(found[1].itm, abs=1e-5)
    assert tiny_model.match(image_paths[0], []) == []


def test_features_are_unit_vectors_that_give_the_itc_score(tiny_model: Model, image_paths: list[Path]) -> None:
    texts = ["a dog", "two children play with a red ball", ""]
    images, words = tiny_model.embed_images(image_paths, batch_size=2), tiny_model.embed_texts(texts, batch_size=2)
    assert images.shape == (5, 4, 16)
    assert words.shape == (3, 16)
    assert images.dtype == words.dtype == torch.float32
    assert torch.allclose(images.norm(dim=-1), torch.ones(5, 4), atol=1e-5)
    assert torch.allclose(words.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(images, tiny_model.embed_images(image_paths, batch_size=5), atol=1e-5)
    assert torch.allclose(words, torch.cat([tiny_model.embed_texts([text]) for text in texts]), atol=1e-5)
    scores = (images @ words.T).amax(dim=1)
    for row, image_path in zip(scores, image_paths, strict=True):
        assert [match.itc for match in tiny_model.match(image_path, texts)] == pytest.approx(row.tolist(), abs=1e-5)
    assert tiny_model.embed_images([]).shape == (0, 4, 16)
    assert tiny_model.embed_texts([]).shape == (0, 16)


# Options


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beams": 3}, "unknown option beams: did you mean num_beams?"),
        ({"num_caption": 3}, "unknown option num_caption: did you mean num_captions?"),
        ({"batchsize": 3}, "unknown option batchsize: did you mean batch_size?"),
        ({"xyz": 3}, "unknown option xyz: use prompt, num_captions, batch_size, num_beams"),
        ({"num_beams": 3, "top_p": 0.9}, "num_beams"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "num_captions": 3}, "3 texts from num_beams=2"),
        ({"num_captions": 0}, "the number of texts is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"temperature": 0.0}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_new_tokens": 1000}, "position"),
    ],
)
def test_wrong_options_are_named(
    tiny_model: Model, image_paths: list[Path], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named) as caught:
        list(tiny_model.caption_many(image_paths[:1], **options))
    assert "\n" not in str(caught.value)


def test_every_method_that_generates_suggests_its_own_keywords(tiny_model: Model, image_paths: list[Path]) -> None:
    for call, wrong, right in (
        (tiny_model.caption, "detail", "details"),
        (tiny_model.ask, "templates", "template"),
        (tiny_model.generate, "batchsize", "batch_size"),
    ):
        texts = () if call == tiny_model.caption else ("what is it?",)
        with pytest.raises(OptionError, match=f"unknown option {wrong}: did you mean {right}\\?"):
            call(image_paths[0], *texts, **{wrong: True})
    with pytest.raises(OptionError, match=r"unknown option steam: did you mean stream\?"):
        tiny_model.chat(image_paths[0]).ask("what is it?", steam=True)  # type: ignore[call-overload]
    for wrong_count in (0, -1):
        with pytest.raises(OptionError, match=f"the number of texts is {wrong_count}"):
            tiny_model.caption(image_paths[0], num_captions=wrong_count)


CALLS: dict[str, Callable[..., Any]] = {
    "caption": lambda model, image_path, **options: model.caption(image_path, **options),
    "ask": lambda model, image_path, **options: model.ask(image_path, "why?", **options),
    "match": lambda model, image_path, **options: model.match(image_path, "a dog", **options),
    "scores": lambda model, image_path, **options: model.scores(image_path, "a dog", **options),
    "rank_images": lambda model, image_path, **options: model.rank_images("a dog", [image_path], **options),
    "rank_texts": lambda model, image_path, **options: model.rank_texts(image_path, ["a dog"], **options),
    "rank_both": lambda model, image_path, **options: model.rank_both([image_path], ["a dog"], **options),
    "embed_images": lambda model, image_path, **options: model.embed_images(image_path, **options),
    "embed_images_many": lambda model, image_path, **options: list(model.embed_images_many(image_path, **options)),
    "embed_texts": lambda model, image_path, **options: model.embed_texts("a dog", **options),
}


@pytest.mark.parametrize("size", [0, -1, 2.5, None, "4", True])
@pytest.mark.parametrize("call", CALLS)
def test_wrong_batch_sizes_are_refused(tiny_model: Model, image_paths: list[Path], call: str, size: Any) -> None:
    with pytest.raises(OptionError, match=f"batch_size is {size!r}: it must be"):
        CALLS[call](tiny_model, image_paths[0], batch_size=size)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top": 0}, "top is 0: it must be at least 1, or None for all"),
        ({"top": "3"}, "top is '3': it must be a whole number"),
        ({"top": 1.5}, "top is 1.5"),
        ({"rerank": -1}, r"rerank is -1: it must be 0 \(ITC alone\) or more"),
        ({"rerank": None}, "rerank is None"),
    ],
)
@pytest.mark.parametrize("call", ["rank_images", "rank_texts", "rank_both"])
def test_wrong_options_of_a_search_are_named(
    tiny_model: Model, image_paths: list[Path], call: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        CALLS[call](tiny_model, image_paths[0], **options)


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_wrong_numbers_of_captions_are_refused(tiny_model: Model, image_paths: list[Path], number: Any) -> None:
    with pytest.raises(OptionError, match=f"the number of texts is {number!r}"):
        tiny_model.caption(image_paths[0], num_captions=number)


@pytest.mark.parametrize("wrong", [3, b"a photo of", ["a photo of"], {"text": "a photo of"}])
def test_what_is_no_text_where_one_belongs_is_named(tiny_model: Model, image_paths: list[Path], wrong: Any) -> None:
    for call in (
        lambda: tiny_model.caption(image_paths[0], prompt=wrong),
        lambda: tiny_model.caption(image_paths[0], prompt=wrong, stream=True),
        lambda: list(tiny_model.caption_many(image_paths, prompt=wrong)),
        lambda: tiny_model.ask(image_paths[0], "why?", template=wrong),
        lambda: tiny_model.chat(image_paths[0]).ask(wrong),
    ):
        with pytest.raises(OptionError, match="give one text"):
            call()


@pytest.mark.parametrize("asked", [["photo.png"], [3], [None], ["ab"], [("photo.png", "why?", "who?")]])
def test_what_is_no_image_with_its_questions_is_named(tiny_model: Model, asked: Any) -> None:
    with pytest.raises(OptionError, match="takes pairs of an image and the question or questions about it, not"):
        list(tiny_model.ask_many(asked))


@pytest.mark.parametrize("wrong", ["a dog", None, 3, [[1.0, 0.0]], np.zeros((1, 16))])
def test_what_are_no_vectors_is_named(tiny_model: Model, wrong: Any) -> None:
    vectors = tiny_model.embed_texts(["a dog"])
    for pair in ((vectors, wrong), (wrong, vectors)):
        with pytest.raises(OptionError, match="give tensors"):
            openblip.similarity(*pair)


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_shows_in_the_error(tiny_model: Model, path: str) -> None:
    with pytest.raises(ImageError, match=f"^{path!r}: "):
        tiny_model.caption(path)


@pytest.mark.parametrize("adapter", ["", " ", 3, b"folder"])
def test_what_names_no_adapter_is_named(tiny_model_folder: Path, adapter: Any) -> None:
    with pytest.raises(OptionError, match="the adapter is "):
        openblip.load(tiny_model_folder, device="cpu", adapter=adapter)


@pytest.mark.parametrize("limit", [-1, 1.5, None, "100", True])
def test_wrong_limits_of_the_cache_are_refused(tiny_model_folder: Path, limit: Any) -> None:
    with pytest.raises(OptionError, match=f"image_cache is {limit!r}: it must be"):
        openblip.load(tiny_model_folder, device="cpu", image_cache=limit)


# Loading


def test_load_explains_what_it_cannot_find(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a model folder nor a known model: .*openblip models"):
        openblip.load("blip3")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        openblip.load(tmp_path)
    with pytest.raises(OptionError, match="dtype 'int3'"):
        openblip.load(tmp_path, dtype="int3")
    with pytest.raises(OptionError, match="device"):
        openblip.load(tmp_path, device="toaster")


def test_folded_encoder_and_half_types_see_the_same(
    tiny_parts: ModelParts, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    pixels = to_pixels([load_image(image_paths[0])], tiny_parts.transform)
    with torch.no_grad():
        expected = tiny_parts.network.visual_prompt(tiny_parts.network.image_features(pixels))[0]
    seen = visual_prompt(tiny_model, image_paths[0])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tiny_model.network.modules())
    assert torch.allclose(seen, expected, atol=1e-3 * expected.abs().max().item())
    half = openblip.load(tiny_model_folder, device="cpu", dtype="bfloat16")
    error = (visual_prompt(half, image_paths[0]).float() - expected).norm() / expected.norm()
    assert error < 0.1
    assert isinstance(half.caption(image_paths[0]), str)
    assert torch.allclose(half.embed_texts(["a dog"]).norm(dim=-1), torch.ones(1), atol=1e-2)


def test_a_stage1_model_matches_but_does_not_speak(tiny_parts: ModelParts, image_paths: list[Path]) -> None:
    network = with_weights_of(tiny_parts, replace(tiny_parts.network.config, language=None))
    model = model_of(replace(tiny_parts, name="stage1", network=network, tokenizer=None), choose_placement("cpu"))
    assert 0 < model.match(image_paths[0], "a dog").itm < 1
    assert model.embed_images(image_paths[:1]).shape == (1, 4, 16)
    for call in (model.caption, model.chat, lambda image: model.ask(image, "what is it?")):
        with pytest.raises(CheckpointError, match=r"the model stage1 .* it can match, embed"):
            call(image_paths[0])


def test_a_model_without_text_side_speaks_but_does_not_match(tiny_parts: ModelParts, image_paths: list[Path]) -> None:
    config = tiny_parts.network.config
    network = with_weights_of(tiny_parts, replace(config, qformer=replace(config.qformer, vocab_size=0)))
    model = model_of(replace(tiny_parts, name="stage2", network=network, matching=None), choose_placement("cpu"))
    assert model.caption(image_paths[0])
    for call in (
        lambda: model.match(image_paths[0], "a dog"),
        lambda: model.embed_images(image_paths),
        lambda: model.embed_texts(["a dog"]),
    ):
        with pytest.raises(CheckpointError, match=r"stage2 has no text side to .*: it can caption, ask, chat"):
            call()


def test_a_heatmap_of_the_queries(tiny_model: Model, image_paths: list[Path]) -> None:
    heat = tiny_model.heatmap(image_paths[0], "two children play with a red ball")
    assert heat.shape == (2, 2) and float(heat.min()) >= 0 and float(heat.max()) == pytest.approx(1)
    assert torch.equal(
        heat, tiny_model.heatmap(tiny_model.encode_image(image_paths[0]), "Two children play with a red ball.")
    )
    assert not torch.equal(heat, tiny_model.heatmap(image_paths[1], "two children play with a red ball"))
    with pytest.raises(openblip.OptionError, match="read the image in layers 0, not in 1"):
        tiny_model.heatmap(image_paths[0], "a dog", layer=1)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_saved_model_says_the_same(
    tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path, dtype: str
) -> None:
    """Its image encoder's normalizations, which were merged into convolutions as it was loaded, are found again."""
    model = openblip.load(tiny_model_folder, device="cpu", dtype=dtype)
    model.save(tmp_path / "saved")
    again = openblip.load(tmp_path / "saved", device="cpu", dtype=dtype)
    assert again.caption(image_paths, num_beams=1) == model.caption(image_paths, num_beams=1)
    torch.testing.assert_close(*(one.encode_image(image_paths[0]).features for one in (again, model)))
