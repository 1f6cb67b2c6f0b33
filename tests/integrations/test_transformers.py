"""transformers' models by their names: its ids, scores, losses and features; where it fails, these do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import openblip
import openblip.integrations.transformers as ours
from openblip.errors import OpenBlipError
from openblip.models.model import Model
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.int8 import Int8Linear
from tests.checkpoints.theirs import QUERIES, Theirs

from .cases import ASKED, PROMPT, edit, given

TOLERANCE = 2e-5
EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = [ours.Blip2ForConditionalGeneration, ours.Blip2Model, ours.Blip2ForImageTextRetrieval]


def load(theirs: Theirs) -> tuple[Any, Any]:
    """Our model and processor of a folder of theirs."""
    model = ours.Blip2ForConditionalGeneration.from_pretrained(theirs.folder)
    return model, ours.AutoProcessor.from_pretrained(theirs.folder)


def close(found: Tensor, expected: Tensor) -> bool:
    largest = max(1.0, expected.detach().abs().max().item())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * largest)


# Generation

WRITTEN: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 9, "eos_token_id": 21},
    {"num_beams": 3, "max_new_tokens": 8},
    {"num_beams": 4, "max_new_tokens": 12, "length_penalty": -1.0, "num_return_sequences": 3, "eos_token_id": 21},
    {"max_new_tokens": 12, "repetition_penalty": 1.7},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 1},
    {"num_beams": 3, "max_new_tokens": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 0.8},
    {"num_beams": 3, "max_new_tokens": 9, "repetition_penalty": 1.3, "pad_token_id": 3, "eos_token_id": [21]},
    {"max_length": 30, "min_length": 29},
    {"max_new_tokens": 9, "min_new_tokens": 6, "num_beams": 2, "early_stopping": True, "eos_token_id": 12},
]


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_ids(writer: Theirs, images: list[Image.Image], options: dict[str, Any]) -> None:
    model, _ = load(writer)
    writer.processor.tokenizer.padding_side = "left" if writer.model.config.use_decoder_only_language_model else "right"
    for asked in ASKED:
        if asked["count"] and "add_special_tokens" not in asked:
            inputs = writer.processor(**given(images, asked), return_tensors="pt")
            expected = writer.model.generate(**inputs, **options)
            assert model.generate(**inputs, **options).equal(expected), asked


@pytest.mark.parametrize(("count", "stop"), [(1, {"eos_token_id": 200}), (3, {"min_new_tokens": 10})])
def test_random_draws_are_theirs(writer: Theirs, images: list[Image.Image], count: int, stop: dict[str, int]) -> None:
    """One by one, and together until the first text ends: from there on transformers draws for finished ones, too."""
    model, _ = load(writer)
    inputs = writer.processor(images=images[:count], return_tensors="pt")
    options = {"do_sample": True, "max_new_tokens": 10, "temperature": 1.5, "top_p": 0.9, **stop}
    torch.manual_seed(7)
    expected = writer.model.generate(**inputs, **options)
    torch.manual_seed(7)
    assert model.generate(**inputs, **options).equal(expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_changes_an_answer(writer: Theirs, images: list[Image.Image], side: str) -> None:
    """transformers goes on behind an OPT's padding, and moves a T5's words away from the image."""
    model, processor = load(writer)
    processor.tokenizer.padding_side = side
    texts = [PROMPT, "a dog"]
    inputs = processor(images[:2], texts, padding=True, return_tensors="pt")
    together = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)[:, -8:]
    for row in range(2):
        alone = processor(images[row], texts[row], return_tensors="pt")
        assert together[row].equal(model.generate(**alone, max_new_tokens=8, min_new_tokens=8)[0, -8:])


def test_ids_without_image_tokens_have_the_image_in_front(opt: Theirs, images: list[Image.Image]) -> None:
    model, processor = load(opt)
    inputs = processor(images[0], PROMPT, return_tensors="pt")
    words = processor.tokenizer(PROMPT, return_tensors="pt")
    found = model.generate(inputs.pixel_values, **words, max_new_tokens=6)
    assert found[:, -6:].equal(model.generate(**inputs, max_new_tokens=6)[:, -6:])
    assert found[:, :-6].equal(words.input_ids)


# Losses and features


def labelled(inputs: Any, pad: int) -> dict[str, Tensor]:
    """Inputs with their own words to learn, as scripts make them: padding and image tokens, too."""
    labels = inputs["input_ids"].clone()
    return {**inputs, "labels": labels.masked_fill(labels == pad, -100) if pad >= 0 else labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [-1, 1], ids=["all learnt", "padding left out"])
def test_scores_losses_and_gradients(writer: Theirs, images: list[Image.Image], side: str, pad: int) -> None:
    model, _ = load(writer)
    writer.processor.tokenizer.padding_side = side
    raw = writer.processor(images=images[:2], text=[PROMPT, "a dog"], padding=True, return_tensors="pt")
    if pad == 1:
        pad = writer.processor.tokenizer.pad_token_id
        if side == "left" and not writer.model.config.use_decoder_only_language_model:
            pad = -1  # what T5 is to say begins with its first word
    inputs = labelled(raw, pad)
    writer.model.zero_grad()
    found, expected = model(**inputs), writer.model(**inputs)
    assert found.logits.std() > 0.1 and close(found.logits, expected.logits)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=TOLERANCE)
    found.loss.backward()
    expected.loss.backward()
    for one, other in (
        (model.query_tokens.grad, writer.model.query_tokens.grad),
        (model.language_projection.weight.grad, writer.model.language_projection.weight.grad),
        (model.vision_model.post_layernorm.bias.grad, writer.model.vision_model.post_layernorm.bias.grad),
    ):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@torch.no_grad()
def test_scores_without_labels(writer: Theirs, images: list[Image.Image]) -> None:
    model, _ = load(writer)
    inputs = dict(writer.processor(images=images[0], text=PROMPT, return_tensors="pt"))
    if not writer.model.config.use_decoder_only_language_model:
        with pytest.raises(OpenBlipError, match="give labels, or decoder_input_ids"):
            model(**inputs)
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 9]])
    found, expected = model(**inputs), writer.model(**inputs)
    assert close(found.logits, expected.logits) and found.loss is None and "loss" not in found
    assert found[0] is found.logits and found["vision_outputs"] is found.vision_outputs
    assert close(found.qformer_outputs.last_hidden_state, expected.qformer_outputs.last_hidden_state)
    assert close(found.vision_outputs.pooler_output, expected.vision_outputs.pooler_output)
    with pytest.raises(AttributeError, match="no 'hidden_states', only logits"):
        _ = found.hidden_states


@torch.no_grad()
def test_features(writer: Theirs, images: list[Image.Image]) -> None:
    model = ours.Blip2Model.from_pretrained(writer.folder)
    theirs = transformers.Blip2Model.from_pretrained(writer.folder)
    pixels = writer.processor(images=images[:2], return_tensors="pt")["pixel_values"]
    words = writer.processor(text=[PROMPT, PROMPT[::-1]], padding=True, return_tensors="pt")
    for name, told in (("get_image_features", (pixels,)), ("get_text_features", (words.input_ids,))):
        found, expected = getattr(model, name)(*told), getattr(theirs, name)(*told)
        assert close(found.last_hidden_state, expected.last_hidden_state)
    assert close(model.get_image_features(pixels).pooler_output, theirs.get_image_features(pixels).pooler_output)
    assert close(model.get_qformer_features(pixels), theirs.get_qformer_features(pixels))
    inputs = labelled(writer.processor(images=images[0], text=PROMPT, return_tensors="pt"), -1)
    assert close(model(**inputs).logits, theirs(**inputs).logits)
    found = load(writer)[0].get_image_features(pixels)
    assert close(found.pooler_output, writer.model.get_image_features(pixels).pooler_output)
    larger = torch.cat([pixels, pixels], dim=2)
    with pytest.raises(OpenBlipError, match="56 x 28, the model reads 28 x 28"):
        model.get_image_features(larger)
    found = model.get_image_features(larger, interpolate_pos_encoding=True).last_hidden_state
    assert close(found, theirs.get_image_features(larger, interpolate_pos_encoding=True).last_hidden_state)


@pytest.mark.parametrize("prefixed", [False, True], ids=["texts alone", "behind image tokens"])
@torch.no_grad()
def test_matching(matcher: Theirs, images: list[Image.Image], tmp_path: Path, prefixed: bool) -> None:
    folder = Path(shutil.copytree(matcher.folder, tmp_path / "copy"))
    if prefixed:
        token = matcher.processor.tokenizer.convert_tokens_to_ids("<image>")
        edit(folder / "config.json", lambda content: content.update(image_token_index=token))
        edit(folder / "processor_config.json", lambda content: content.update(num_query_tokens=QUERIES))
    model, processor = (
        ours.Blip2ForImageTextRetrieval.from_pretrained(folder),
        ours.AutoProcessor.from_pretrained(folder),
    )
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder)
    told = {"images": images[:3], "text": ["a red dog", "the ball", "?"], "padding": True, "return_tensors": "pt"}
    inputs, expected = processor(**told), transformers.AutoProcessor.from_pretrained(folder)(**told)
    assert inputs.keys() == expected.keys() and all(inputs[name].equal(expected[name]) for name in expected)
    for head in (True, False):
        found = model(**inputs, use_image_text_matching_head=head)
        expected = theirs(**inputs, use_image_text_matching_head=head)
        for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
            assert close(found[name], expected[name]), name
        # Ids without the prefix: transformers cuts words off where it expects one.
        words = processor.tokenizer(told["text"], padding=True, return_tensors="pt")
        plain = model(inputs.pixel_values, **words, use_image_text_matching_head=head)
        assert close(plain.logits_per_image, found.logits_per_image)
    with pytest.raises(OpenBlipError, match="3 images came with 1 texts"):
        model(inputs.pixel_values, inputs.input_ids[:1], use_image_text_matching_head=True)
    with pytest.raises(OpenBlipError, match="a text of 50 tokens is longer"):
        model(inputs.pixel_values, torch.ones(1, 50, dtype=torch.int64))


# Loading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "bfloat16"])
@torch.no_grad()
def test_half_precision_is_where_theirs_is(opt: Theirs, images: list[Image.Image], dtype: Any) -> None:
    model = ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder, torch_dtype=dtype, device_map="cpu")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(opt.folder, dtype=dtype)
    for parts in (model, theirs):
        parts.types = {name.partition(".")[0]: value.dtype for name, value in parts.named_parameters()}
    assert model.types == theirs.types and model.dtype == theirs.types["vision_model"]
    inputs = opt.processor(images=images[0], text=PROMPT, return_tensors="pt").to("cpu", model.dtype)
    found, expected = model(**inputs).logits, theirs(**inputs).logits
    assert found.dtype == expected.dtype
    whole = model.to(torch.float64)(**inputs).logits
    assert model.query_tokens is model.qformer.queries and whole.dtype == torch.float64
    assert (found - whole).abs().max() <= 0.2 * whole.abs().max()
    assert (found - expected).abs().max() <= (0.03 if dtype == torch.float16 else 0.2) * expected.abs().max()


def test_the_type_is_what_the_folder_says(folder: Path) -> None:
    for name, kind in (("dtype", "float16"), ("torch_dtype", "bfloat16")):
        edit(folder / "config.json", lambda content: content.pop("dtype", None))
        edit(folder / "config.json", lambda content, said={name: kind}: content.update(said))
        assert ours.Blip2Model.from_pretrained(folder).dtype == getattr(torch, kind)
    edit(folder / "config.json", lambda content: content.pop("torch_dtype"))
    model = ours.Blip2Model.from_pretrained(folder, low_cpu_mem_usage=True, use_safetensors=True)
    assert model.dtype == torch.float32 and model.device == torch.device("cpu") and not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {
        name.partition(".")[0] for name, _ in transformers.Blip2Model.from_pretrained(folder).named_parameters()
    }


def test_a_folder_from_before_image_tokens(folder: Path, opt: Theirs, images: list[Image.Image]) -> None:
    for name in ("image_token_index", "num_query_tokens"):
        edit(folder / "config.json", lambda content, name=name: content.pop(name))
    edit(folder / "config.json", lambda content: content.update(num_query_tokens=QUERIES))
    edit(folder / "processor_config.json", lambda content: content.pop("num_query_tokens"))
    model, processor = load(Theirs(opt.model, opt.processor, folder))
    inputs = processor(images[0], PROMPT, return_tensors="pt")
    expected = opt.processor(images=images[0], text=PROMPT, return_tensors="pt")
    assert inputs.input_ids.equal(expected.input_ids)
    assert model.generate(**inputs).equal(opt.model.generate(**expected))
    assert model.config.image_token_index == opt.model.config.image_token_index


def test_a_saved_model_answers_there_in_a_batch_as_alone(
    writer: Theirs, images: list[Image.Image], tmp_path: Path
) -> None:
    load(writer)[0].save_pretrained(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    texts, length = [PROMPT, "a dog"], {"max_new_tokens": 6, "min_new_tokens": 6}
    together = theirs.generate(**processor(images[:2], texts, padding=True, return_tensors="pt"), **length)
    for row in range(2):
        alone = theirs.generate(**processor(images[row], texts[row], return_tensors="pt"), **length)
        assert together[row, -6:].equal(alone[0, -6:])


def test_the_config_has_what_scripts_ask_for(writer: Theirs) -> None:
    config, theirs = load(writer)[0].config, writer.model.config
    for name in ("num_query_tokens", "image_token_index", "image_token_id", "use_decoder_only_language_model"):
        assert getattr(config, name) == getattr(theirs, name)
    for name in ("vocab_size", "hidden_size", "eos_token_id", "pad_token_id"):
        assert getattr(config.text_config, name) == getattr(theirs.text_config, name)
    assert config.vision_config.image_size == theirs.vision_config.image_size
    assert config.to_dict()["model_type"] == "blip-2" and config.get("nothing") is None


def test_a_folder_of_ours(tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    model = ours.Blip2ForConditionalGeneration.from_pretrained(tiny_model_folder)
    processor = ours.Blip2Processor.from_pretrained(tiny_model_folder)
    for prompt in ("", "a dog"):
        inputs = processor(
            [openblip.images.decode.load_image(image_path) for image_path in image_paths],
            [prompt] * 5,
            return_tensors="pt",
        )
        ids = model.generate(**inputs, num_beams=3, max_new_tokens=8, repetition_penalty=1.0)
        new = processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        expected = tiny_model.caption(image_paths, prompt=prompt, num_beams=3, max_new_tokens=8, min_new_tokens=0)
        assert [" ".join(text.split()) for text in new] == expected
    assert model.generate(**inputs, repetition_penalty=1.5).shape[0] == 5
    with pytest.raises(OpenBlipError, match="also writes"):
        ours.Blip2ForImageTextRetrieval.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True, "device_map": "cpu"}])
def test_fewer_bits(options: dict[str, Any]) -> None:
    processor = ours.Blip2Processor.from_pretrained("mini")
    image_path = Image.open(EXAMPLES / "000000551780.jpg")
    inputs = processor(image_path, return_tensors="pt").to("cpu", torch.float16)
    floats = ours.Blip2ForConditionalGeneration.from_pretrained("mini")
    small = ours.Blip2ForConditionalGeneration.from_pretrained("mini", torch_dtype=torch.float16, **options)
    kinds = {type(module) for module in small.modules()}
    assert Int8Linear in kinds and (Int4Linear in kinds) == ("load_in_4bit" in options)
    config = SimpleNamespace(**{"load_in_8bit": False, "load_in_4bit": False, **options})
    same = ours.Blip2ForConditionalGeneration.from_pretrained("mini", quantization_config=config)
    said = [processor.batch_decode(model.generate(**inputs))[0] for model in (floats, small, same)]
    assert said[1] == said[2]
    assert len(set(said[0].split()) & set(said[1].split())) >= len(set(said[0].split())) / 2


# What is refused


@pytest.mark.parametrize(
    "options",
    [
        *({"device_map": place} for place in ("auto", "balanced", "balanced_low_0", "sequential", "cpu", {"": "cpu"})),
        {"device_map": torch.device("cpu")},
        {"device_map": {"vision_model": "cpu", "language_model": "cpu"}},
        {"token": "secret", "revision": "main", "cache_dir": "x", "local_files_only": True, "force_download": False},
        {"use_auth_token": True, "resume_download": None, "proxies": None, "config": None, "variant": None},
        {"ignore_mismatched_sizes": False, "output_attentions": False, "output_hidden_states": None},
        {"attn_implementation": "flash_attention_2", "low_cpu_mem_usage": True, "use_safetensors": True},
        {"trust_remote_code": True, "weights_only": True, "max_memory": {0: "1GB"}, "offload_folder": "x"},
        {"torch_dtype": "auto"},
        {"dtype": torch.float32, "torch_dtype": None},
    ],
    ids=str,
)
@torch.no_grad()
def test_ways_to_load_that_are_taken(opt: Theirs, images: list[Image.Image], options: dict[str, Any]) -> None:
    plain, processor = load(opt)
    inputs = processor(images[0], PROMPT, return_tensors="pt")
    model = ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder, **options)
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_a_subfolder_is_a_model_of_its_own(opt: Theirs, tmp_path: Path) -> None:
    shutil.copytree(opt.folder, tmp_path / "inside" / "model")
    model = ours.Blip2ForConditionalGeneration.from_pretrained(tmp_path, subfolder="inside/model")
    processor = ours.AutoProcessor.from_pretrained(tmp_path, subfolder="inside/model", token=True)
    expected = load(opt)[0].state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    assert processor.num_query_tokens == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization_config": object()}, "quantization_config says neither"),
        ({"variant": "fp16"}, "from_pretrained does not know variant here: use dtype"),
        ({"torch_dtype": torch.int8}, "dtype is torch.int8: use torch.float32"),
        ({"dtype": "half-ish"}, "dtype is 'half-ish'"),
        ({"device_map": {"vision_model": "cpu", "language_model": 0}}, "over 2 devices: give one"),
        ({"device_map": "tpu:9"}, "'tpu:9' is "),
        ({"ignore_mismatched_sizes": True}, "does not know ignore_mismatched_sizes here: every tensor has to fit"),
        ({"output_attentions": True}, "does not know output_attentions here: attention weights are not kept"),
        ({"output_hidden_states": True}, "does not know output_hidden_states here: .* get_image_features"),
        ({"output_loading_info": True}, "does not know output_loading_info here: the model comes alone"),
        ({"force_download": True}, "does not know force_download here: .*hf cache rm"),
        ({"config": object()}, r"does not know config here: the folder's config\.json counts"),
        ({"state_dict": {}}, "does not know state_dict here: .* load_state_dict"),
        ({"proxies": {"https": "x"}}, "does not know proxies here: set HTTPS_PROXY"),
        ({"colour": 3}, "from_pretrained does not know colour here: use dtype"),
        ({"subfolder": "../other"}, r"subfolder is '\.\./other': give a path below"),
        ({"subfolder": "nothing"}, "nothing is no folder: check subfolder"),
    ],
)
def test_wrong_ways_to_load(opt: Theirs, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OpenBlipError, match=words):
        ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": 2}, "generate does not know guidance_scale here: use max_new_tokens"),
        ({"max_length": 5}, "max_length is 5 and the prompt has 21 tokens, .* max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 500}, "positions"),
        ({"num_beams": 2, "do_sample": True}, "one or the other"),
        ({"eos_token_id": [1, 2]}, "eos_token_id has 2 tokens"),
        ({"early_stopping": "never"}, "early_stopping is 'never'"),
        ({"top_p": 0.0, "do_sample": True}, "top_p is 0.0"),
    ],
)
def test_wrong_ways_to_write(opt: Theirs, images: list[Image.Image], options: dict[str, Any], words: str) -> None:
    model, processor = load(opt)
    inputs = processor(images[0], "Question: what is it? Answer: a red", return_tensors="pt")
    with pytest.raises(OpenBlipError, match=words):
        model.generate(**inputs, **options)


def test_inputs_that_do_not_go_together(opt: Theirs, matcher: Theirs, images: list[Image.Image]) -> None:
    model, processor = load(opt)
    inputs = processor(images[0], PROMPT, return_tensors="pt")
    calls: list[tuple[Callable[[], object], str]] = [
        (
            lambda: model(**inputs, output_attentions=True),
            "the model does not know output_attentions here: leave it out",
        ),
        (lambda: model(torch.cat([inputs.pixel_values] * 2), inputs.input_ids), "2 images came with 1 texts"),
        (lambda: model(inputs.pixel_values, inputs.input_ids[:, 1:]), "has 3 image tokens, the model 4 queries"),
        (lambda: model(inputs.pixel_values, torch.full((1, 200), 7)), "204 tokens exceed the model's 96 positions"),
        (lambda: processor(), "neither images nor text"),
        (lambda: processor(images[0], ["a", "a dog"], return_tensors="pt"), "give padding=True"),
        (lambda: processor(images[0], return_tensors="np"), "return_tensors is 'np'"),
        (lambda: processor(images[0], do_resize=False), "the processor does not know do_resize"),
        (lambda: processor(images[0], "a dog", max_length=4, truncation=True), "cut at 0 tokens"),
        (lambda: processor(images[0], "a dog", padding="longer"), "padding is 'longer'"),
        (lambda: ours.AutoProcessor.from_pretrained(opt.folder, size=3), "does not know size"),
        (lambda: ours.Blip2ForImageTextRetrieval.from_pretrained(opt.folder), "load it with Blip2ForConditionalGen"),
        (lambda: ours.Blip2Model.from_pretrained(matcher.folder), "load it with Blip2ForImageTextRetrieval"),
    ]
    for call, words in calls:
        with pytest.raises(OpenBlipError, match=words):
            call()


@pytest.mark.parametrize("kind", [*MODELS, ours.AutoProcessor])
def test_names_that_lead_nowhere(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, words in (
        ("Salesforce/blip2-opt-27b", "blip2-opt-27b"),
        ("blip2_opt/pretrain_opt2.7b", "load it with openblip.integrations.lavis"),
        (tmp_path, "config.json is missing"),
    ):
        with pytest.raises(OpenBlipError, match=words):
            kind.from_pretrained(name)
    with pytest.raises(OpenBlipError, match="local_files_only forbids"):
        kind.from_pretrained("Salesforce/blip2-opt-2.7b", local_files_only=True, cache_dir=tmp_path)
