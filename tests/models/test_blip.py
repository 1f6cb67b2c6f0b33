"""BLIP as users hold it: captions, answers, matching and embeddings, whatever else is in a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import openblip
from openblip import devices
from openblip.devices import choose_placement
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.models.load import model_of
from openblip.nn.blip import BlipLanguageModel
from openblip.nn.quant.int8_packing import LEVELS, input_levels
from openblip.nn.quant.swap import quantized_layers
from tests.models.blip_models import ENCODE, Make, small_parts
from tests.models.test_wrong_arguments import odd_values, public_call

QUESTIONS = ["what is this?", "how many children play on the beach?", "where is the red ball?"]


def test_abilities(make: Make) -> None:
    assert make("caption").abilities == ("caption",)
    assert make("answer").abilities == ("ask",)
    assert make("match").abilities == make("embed").abilities == ("match", "embed", "classify")
    assert make("pretrain").abilities == ("caption", "match", "embed", "classify")


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_beams": 2, "repetition_penalty": 1.5}])
def test_captions_are_those_of_the_network(make: Make, image_paths: list[Path], options: dict[str, int]) -> None:
    model = make("caption")
    model.image_cache.clear()
    found = model.caption(image_paths, details=True, max_new_tokens=8, min_new_tokens=2, **options)
    language = BlipLanguageModel(model.network)
    words = torch.tensor(model.parts.prompt_ids("a picture of"))
    asked = GenerationOptions(
        **{"num_beams": 3, **options}, max_new_tokens=8, min_new_tokens=2, stop_ids=(model.parts.stop_id,)
    )
    for path, caption in zip(image_paths, found, strict=True):
        features = model.encode_image(path).features[None]

        class Beside(BlipLanguageModel):
            def read(self, prompts, mask, new_tokens, texts=1, memory=None):  # type: ignore[no-untyped-def]
                return super().read(prompts, mask, new_tokens, texts, self.remember(features))  # noqa: B023

        ((text,),) = generate(Beside(model.network), [language.embed(words)], asked, [words])
        assert caption.log_probs == pytest.approx(text.log_probs, abs=1e-4)
        assert caption.score == pytest.approx(text.score, abs=1e-4)
    assert len({caption.text for caption in found}) > 1


def test_mixed_prompts_are_as_alone(make: Make, image_paths: list[Path]) -> None:
    model, prompts = make("caption"), ["a picture of", "a photo", "two children play with the"]
    together = model.generate(image_paths, prompts, max_new_tokens=6)
    model.image_cache.clear()
    assert together == [[model.generate(path, prompt, max_new_tokens=6) for prompt in prompts] for path in image_paths]
    pieces = list(model.caption(image_paths[0], stream=True, max_new_tokens=6))
    assert "".join(pieces) == model.caption(image_paths[0], num_beams=1, max_new_tokens=6)
    assert len(model.caption(image_paths[0], num_captions=2)) == 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_questions_are_as_alone(make: Make, image_paths: list[Path], count: int) -> None:
    model = make("answer")
    model.image_cache.clear()
    together = model.ask(image_paths, QUESTIONS[:count], details=True)
    for path, row in zip(image_paths, together, strict=True):
        for question, answer in zip(QUESTIONS, row, strict=False):
            model.image_cache.clear()
            alone = model.ask(path, question, details=True)
            assert alone.text == answer.text
            assert alone.log_probs == pytest.approx(answer.log_probs, abs=1e-4)
    assert len({answer.text for row in together for answer in row}) > 1


def test_a_question_is_read_from_enc_to_sep(make: Make, image_paths: list[Path]) -> None:
    parts = make("answer").parts
    words = parts.require_words()
    assert parts.prompt_ids("what is this?") == [ENCODE, *words.encode("what is this?"), words.token_id("[SEP]")]
    assert make("caption").parts.prompt_ids("a dog") == [words.token_id("[DEC]"), *words.encode("a dog")]


def test_an_image_is_encoded_and_read_once(
    make: Make, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("answer")
    model.image_cache.clear()
    image = model.encode_image(image_paths[0])
    before = image.nbytes
    model.ask(image, QUESTIONS[0])
    assert image.nbytes == before  # nothing is kept of an image that is asked about once
    model.ask(image, QUESTIONS)
    kept = image.nbytes
    assert kept > before and model.image_cache.nbytes >= kept
    monkeypatch.setattr(model.network.encoder, "remember", lambda *_: pytest.fail("the image was read again"))
    assert model.ask(image, QUESTIONS[1])


def test_ranked_answers(make: Make, image_paths: list[Path]) -> None:
    """Scores are those of the whole answer read at once, and do not depend on what else is ranked."""
    model, answers = make("answer"), ["red", "two children", "the beach", "a dog"]
    found = model.rank_answers(image_paths, QUESTIONS, answers)
    language, words = BlipLanguageModel(model.network), model.parts.require_words()
    with torch.inference_mode():
        for path, rows in zip(image_paths, found, strict=True):
            memory = language.remember(model.encode_image(path).features[None])
            for question, row in zip(QUESTIONS, rows, strict=True):
                prompt = language.embed(torch.tensor([model.parts.prompt_ids(question)]))
                for ranked in row:
                    ids = torch.tensor([[*words.encode(answers[ranked.index]), model.parts.stop_id]])
                    logits = language.logits(language.hidden_before(prompt, None, ids, memory))
                    loss = torch.nn.functional.cross_entropy(logits[0], ids[0], reduction="sum", label_smoothing=0.1)
                    assert ranked.score == pytest.approx(-float(loss), abs=1e-3)
                assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
    alone = model.rank_answers(image_paths[0], QUESTIONS[0], answers, top=1)
    assert [one.answer for one in alone] == [found[0][0][0].answer]
    assert len(model.rank_answers(image_paths[0], QUESTIONS[0], answers, first=2)) == 2
    with pytest.raises(openblip.OptionError, match="there are no answers, or one is empty"):
        model.rank_answers(image_paths[0], QUESTIONS[0], ["red", " "])
    with pytest.raises(openblip.OptionError, match="positions: shorten the question, or leave long answers out"):
        model.rank_answers(image_paths[0], QUESTIONS[0], ["red", "dog " * 200])


def test_matching(make: Make, image_paths: list[Path]) -> None:
    model, texts = make("match"), ["a dog on the beach", "two children play with the red ball"]
    found = model.scores(image_paths, texts, itm=True)
    network, words = model.network, model.parts.matching
    assert words is not None
    with torch.inference_mode():
        for row, path in enumerate(image_paths):
            features = model.encode_image(path).features[None]
            for column, text in enumerate(texts):
                ids = torch.tensor([words.encode(text)])
                odds = network.itm_logits(ids, None, features).softmax(dim=1)[0, 1]
                cosine = network.project_images(features[:, 0]) @ network.project_texts(network.encoder(ids)[:, 0]).T
                assert found.itm is not None
                assert float(found.itm[row, column]) == pytest.approx(float(odds), abs=1e-5)
                assert float(found.itc[row, column]) == pytest.approx(float(cosine), abs=1e-5)
    both = model.rank_both(image_paths, texts, rerank=2)
    assert [[one.index for one in row] for row in both.texts] == [
        [one.index for one in model.rank_texts(path, texts, rerank=2)] for path in image_paths
    ]
    assert model.embed_images(image_paths).shape == (len(image_paths), 1, 16)
    assert openblip.similarity(model.embed_images(image_paths), model.embed_texts(texts)).shape == found.itc.shape


def test_matching_without_a_head(make: Make, image_paths: list[Path]) -> None:
    model = make("embed")
    assert model.match(image_paths[0], "a dog").itm is None
    assert model.rank_texts(image_paths[0], ["a dog", "a cat"], rerank=0)
    assert [one.label for one in model.classify(image_paths[0], ["dog", "cat"])]


@pytest.mark.parametrize("task", ["caption", "answer", "match"])
def test_chat_is_refused(make: Make, image_paths: list[Path], task: str) -> None:
    with pytest.raises(openblip.CheckpointError, match=f"the model {task} holds no conversation: it can "):
        make(task).chat(image_paths[0])


@pytest.mark.parametrize("task", ["caption", "answer", "match", "embed", "pretrain"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_a_saved_model_is_the_same(make: Make, image_paths: list[Path], tmp_path: Path, task: str, dtype: str) -> None:
    model = make(task)
    again = openblip.load(model.save(tmp_path / task), device="cpu", dtype=dtype)
    assert (again.family, again.abilities, again.network.config) == ("blip", model.abilities, model.network.config)
    assert bool(quantized_layers(again.network)) == (dtype != "float32")
    if dtype != "float32":
        return
    if "caption" in model.abilities:
        assert again.caption(image_paths) == model.caption(image_paths)
    if "ask" in model.abilities:
        assert again.ask(image_paths, QUESTIONS) == model.ask(image_paths, QUESTIONS)
    if "match" in model.abilities:
        assert torch.equal(again.scores(image_paths, ["a dog"]).itc, model.scores(image_paths, ["a dog"]).itc)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantized_answers_are_near(make: Make, image_paths: list[Path], tmp_path: Path, dtype: str) -> None:
    model = make("match")
    smaller = openblip.load(model.save(tmp_path / "match"), device="cpu", dtype=dtype)
    exact, near = (one.scores(image_paths, ["a dog", "a red ball"]).itc for one in (model, smaller))
    # Inputs have half as many levels on CPUs without VNNI, so steps are twice as long.
    longer = LEVELS / (input_levels() or LEVELS)
    assert (exact - near).abs().max() < (0.05 * longer if dtype == "int8" else 0.4)


def test_heatmaps(make: Make, image_paths: list[Path], tmp_path: Path) -> None:
    model, text = make("match"), "two children play with the red ball"
    heat = model.heatmap(image_paths[0], text)
    assert heat.shape == (4, 4) and float(heat.min()) >= 0 and float(heat.max()) == pytest.approx(1)
    assert not torch.equal(heat, model.heatmap(image_paths[0], "a dog", layer=0))
    assert torch.equal(heat, model.heatmap(model.encode_image(image_paths[0]), text))
    image = openblip.load_image(image_paths[0])
    drawn, cold = (openblip.draw_heatmap(image, one) for one in (heat, torch.zeros(4, 4)))
    assert drawn.size == image.size
    row, column = divmod(int(heat.argmax()), 4)
    spot = (column + 0.5) * image.width / 4, (row + 0.5) * image.height / 4
    hot, blue = (one.getpixel(tuple(map(int, spot))) for one in (drawn, cold))
    assert isinstance(hot, tuple) and isinstance(blue, tuple) and hot[0] > blue[0] and hot[2] < blue[2] + 60
    with pytest.raises(openblip.OptionError, match="the text encoder has 2 layers"):
        model.heatmap(image_paths[0], "a dog", layer=2)
    for nothing in ("", " \t"):
        with pytest.raises(openblip.OptionError, match="has no words: say what to look for"):
            model.heatmap(image_paths[0], nothing)
    with pytest.raises(openblip.OptionError, match="one image has one heatmap"):
        model.heatmap(image_paths, "a dog")  # type: ignore[arg-type]
    with pytest.raises(
        openblip.CheckpointError, match="embed does not tell where it looks: a BLIP or BLIP-2 with ITM does"
    ):
        make("embed").heatmap(image_paths[0], "a dog")
    smaller = openblip.load(model.save(tmp_path / "match"), device="cpu", dtype="int8")
    with pytest.raises(openblip.CheckpointError, match="is quantized, and so has no gradients"):
        smaller.heatmap(image_paths[0], "a dog")


@pytest.mark.parametrize(("task", "name"), [("answer", "rank_answers"), ("match", "heatmap")])
def test_odd_values_are_named(make: Make, image_paths: list[Path], task: str, name: str) -> None:
    model = make(task)
    call, right, names = public_call(model, name, image_paths[0].parent)
    right["images"] = image_paths[0]
    for parameter in names:
        for value in odd_values(model):
            try:
                call(**right | {parameter: value})
            except openblip.OpenBlipError as error:
                assert str(error).isprintable() and len(str(error)) < 1_000, (parameter, value)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_quantized_model_attends_to_images_in_half_precision_where_that_is_fast(
    dtype: str, fast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: fast)
    model = model_of(small_parts("caption", tmp_path), choose_placement("cpu", dtype))
    expected = torch.bfloat16 if fast and dtype == "int8" else None
    assert [block.attention.dtype for block in model.network.vision.blocks] == [expected] * 2
