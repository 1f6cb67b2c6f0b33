"""What is written for transformers loads there, says the same, and comes back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    PreTrainedModel,
)

import openblip
from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts
from openblip.checkpoints.names.transformers import to_transformers
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.transformers.config import read_config
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.write import save_transformers, task_config
from openblip.errors import CheckpointError, OptionError
from openblip.generation.options import GenerationOptions, TextOptions
from openblip.nn.blip2 import Blip2Network
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates
from tests.checkpoints.theirs import Theirs, write_matcher, write_writer
from tests.conftest import lively

PROMPT = "Question: what is it? Answer:"
CAPTIONS = GenerationOptions(num_beams=2, max_new_tokens=9, min_new_tokens=1, length_penalty=0.5)
ANSWERS = GenerationOptions(
    num_beams=3, max_new_tokens=7, min_new_tokens=0, length_penalty=-0.5, no_repeat_ngram_size=3
)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_writer(tmp_path_factory.mktemp("models") / "writer")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_matcher(tmp_path_factory.mktemp("models") / "matcher")


@pytest.fixture(scope="module")
def both(tiny_parts: ModelParts) -> ModelParts:
    """A model of ours that writes and matches, with a ViT whose eps is LAVIS', a full word table and its own ways."""
    vision = VitConfig(42, 14, 36, 2, 3, 50, attention_bias="qv")
    config = tiny_parts.network.config
    config = replace(config, vision=vision, qformer=replace(config.qformer, image_width=36))
    return replace(
        tiny_parts,
        name="both",
        network=lively(Blip2Network(config)),
        transform=replace(tiny_parts.transform, image_size=42, mean=(0.1, 0.2, 0.3)),
        prompts=PromptTemplates("a photo of", "Q: {question} A:", "Q: {question} A: {answer} "),
        defaults=GenerationDefaults("\n", CAPTIONS, ANSWERS),
    )


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def load_theirs(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def equal_tensors(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@torch.no_grad()
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 30_000])
def test_a_writer_goes_there_and_back(
    writer: Theirs, image_paths: list[Path], tmp_path: Path, shard_bytes: int
) -> None:
    save_transformers(load_transformers(writer.folder), tmp_path, shard_bytes=shard_bytes)
    found, processor = load_theirs(Blip2ForConditionalGeneration, tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert equal_tensors(found, writer.model)
    images = [Image.open(path).convert("RGB") for path in image_paths[:2]]
    for text in (PROMPT, "a dog\n runs  </s>"):
        old = writer.processor(images=images, text=[text] * 2, return_tensors="pt")
        new = processor(images=images, text=[text] * 2, return_tensors="pt")
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
        assert torch.equal(found(**new).logits, writer.model(**old).logits)
        ids = found.generate(**new, max_new_tokens=6, do_sample=False)
        assert torch.equal(ids, writer.model.generate(**old, max_new_tokens=6, do_sample=False))
    files = {path.name: path for path in tmp_path.iterdir() if path.suffix == ".safetensors"}
    assert (len(files) > 3) == (shard_bytes == 30_000)
    for path in files.values():
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes


@torch.no_grad()
def test_a_matcher_goes_there_and_back(matcher: Theirs, image_paths: list[Path], tmp_path: Path) -> None:
    save_transformers(load_transformers(matcher.folder), tmp_path)
    found, processor = load_theirs(Blip2ForImageTextRetrieval, tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert equal_tensors(found, matcher.model)
    images = [Image.open(path).convert("RGB") for path in image_paths[:2]]
    texts = ["a red dog", "The beach, and nobody?"]
    old = matcher.processor(images=images, text=texts, padding=True, return_tensors="pt")
    new = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    for head in (True, False):
        expected = matcher.model(**old, use_image_text_matching_head=head).logits_per_image
        assert torch.equal(found(**new, use_image_text_matching_head=head).logits_per_image, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_keep_their_type(writer: Theirs, tmp_path: Path, dtype: torch.dtype) -> None:
    save_transformers(load_transformers(writer.folder, ReadOptions(dtype)), tmp_path)
    stored, before = load_file(tmp_path / "model.safetensors"), load_file(writer.folder / "model.safetensors")
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], before[name].to(dtype)) for name in before)


def test_a_folder_of_theirs_comes_back_as_the_same_parts(writer: Theirs, matcher: Theirs, tmp_path: Path) -> None:
    for theirs in (writer, matcher):
        first = load_transformers(theirs.folder)
        save_transformers(first, tmp_path / first.name)
        second = load_transformers(tmp_path / first.name)
        assert first.network.config == second.network.config
        assert (first.name, first.transform, first.prompts, first.defaults) == (
            second.name,
            second.transform,
            second.prompts,
            second.defaults,
        )
        state, again = first.network.state_dict(), second.network.state_dict()
        assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
        words = (first.tokenizer or first.matching.tokenizer, second.tokenizer or second.matching.tokenizer)  # type: ignore[union-attr]
        assert words[0].fast.get_vocab() == words[1].fast.get_vocab()


@torch.no_grad()
def test_a_writer_of_ours_says_the_same_there(both: ModelParts, image_paths: list[Path], tmp_path: Path) -> None:
    config = both.network.config
    assert config.language is not None and both.tokenizer is not None
    assert both.tokenizer.vocab_size == config.language.vocab_size  # no row is free for transformers' mark
    save_transformers(both, tmp_path, task="write")
    theirs, processor = load_theirs(Blip2ForConditionalGeneration, tmp_path), AutoProcessor.from_pretrained(tmp_path)
    ours = openblip.load(tmp_path, device="cpu")
    native = both.network
    stop = ours.parts.stop_id
    for path in image_paths:
        image = Image.open(path).convert("RGB")
        inputs = processor(images=image, text=PROMPT, return_tensors="pt")
        ids = inputs["input_ids"][0, config.qformer.num_queries :].tolist()
        assert ids == [both.tokenizer.start_id, *both.tokenizer.encode(PROMPT)]
        assert ours.parts.tokenizer is not None and ids[1:] == ours.parts.tokenizer.encode(PROMPT)
        prompt = native.visual_prompt(native.image_features(inputs["pixel_values"]))
        embeds = torch.cat([prompt, native.decoder.embed(torch.tensor([ids]))], dim=1)
        logits = native.decoder.logits(native.decoder(embeds))
        # One eps for two: transformers' norm behind the encoder has the encoder's own.
        found = theirs(**inputs).logits
        assert difference(logits, found[..., : config.language.vocab_size]) <= 1e-3
        # One row twice; a CPU's products at a matrix's end may add up in another order than those within.
        assert difference(found[..., -1], found[..., both.tokenizer.pad_id]) <= 4e-7 * found.abs().max().item()
        text = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        plain: TextOptions = {"num_beams": 1, "max_new_tokens": 8, "min_new_tokens": 0, "no_repeat_ngram_size": 0}
        answer = ours.generate(path, PROMPT, details=True, **plain)
        expected = text[: text.index(stop)] if stop in text else text
        assert answer.text == " ".join(both.tokenizer.decode(expected).split())


@torch.no_grad()
def test_a_matcher_of_ours_says_the_same_there(both: ModelParts, image_paths: list[Path], tmp_path: Path) -> None:
    vision = both.network.config.vision
    assert isinstance(vision, VitConfig)
    same_eps = replace(both.network.config, vision_norm_eps=vision.layer_norm_eps)
    network = Blip2Network(same_eps).eval()
    network.load_state_dict(both.network.state_dict())
    save_transformers(replace(both, network=network), tmp_path, task="match")
    theirs, processor = load_theirs(Blip2ForImageTextRetrieval, tmp_path), AutoProcessor.from_pretrained(tmp_path)
    ours = openblip.load(tmp_path, device="cpu")
    for match in ours.match(image_paths[0], ["a dog runs", "two children"]):
        inputs = processor(images=Image.open(image_paths[0]).convert("RGB"), text=match.text, return_tensors="pt")
        itm = theirs(**inputs, use_image_text_matching_head=True).logits_per_image.softmax(dim=1)[0, 1].item()
        assert abs(match.itm - itm) <= 1e-5
        assert abs(match.itc - theirs(**inputs).logits_per_image[0, 0].item()) <= 1e-5


def test_what_transformers_has_no_settings_for_comes_back(both: ModelParts, tmp_path: Path) -> None:
    save_transformers(both, tmp_path / "write", task="write")
    save_transformers(both, tmp_path / "match", task="match")
    # They keep it, too.
    load_theirs(Blip2ForImageTextRetrieval, tmp_path / "match").config.save_pretrained(tmp_path / "match")
    writer, matcher = load_transformers(tmp_path / "write"), load_transformers(tmp_path / "match")
    for found in (writer, matcher):
        assert (found.transform, found.prompts, found.defaults) == (both.transform, both.prompts, both.defaults)
        assert found.network.config.vision_norm_eps == 1e-5
        assert found.network.config.vision == both.network.config.vision
    assert matcher.matching is not None and matcher.matching.max_tokens == 16
    assert matcher.network.temperature.item() == pytest.approx(0.07)
    ours, found = both.network.state_dict(), matcher.network.state_dict()
    assert all(torch.equal(found[name], ours[name]) for name in found if not name.startswith(("qformer.head", "temp")))


def test_shards_take_an_older_models_place(both: ModelParts, writer: Theirs, tmp_path: Path) -> None:
    save_transformers(both, tmp_path, task="write")
    save_transformers(load_transformers(writer.folder), tmp_path, shard_bytes=50_000)
    assert equal_tensors(load_theirs(Blip2ForConditionalGeneration, tmp_path), writer.model)
    save_transformers(both, tmp_path, task="write")
    assert load_transformers(tmp_path).network.config.language == replace(
        task_config(both.network.config, "write").language,  # type: ignore[type-var]
        vocab_size=both.network.decoder.config.vocab_size + 1,
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in writer.model.parameters())


def test_what_cannot_be_written_is_explained(both: ModelParts, tiny_parts: ModelParts, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give the task, write or match"):
        save_transformers(both, tmp_path)
    with pytest.raises(OptionError, match="the model both cannot match"):
        save_transformers(replace(both, matching=None), tmp_path, task="match")
    for task in (None, "write", "match"):  # a task would not help: the image encoder is named first
        with pytest.raises(CheckpointError, match=f"plain ViT: the image encoder of {tiny_parts.name} cannot"):
            save_transformers(tiny_parts, tmp_path, task=task)  # type: ignore[arg-type]
    config = both.network.config
    for vision in (
        replace(config.vision, layer_scale=True),
        replace(config.vision, pre_norm=True),
        replace(config.vision, patch_bias=False),
    ):
        parts = replace(both, network=Blip2Network(replace(config, vision=vision)))
        with pytest.raises(CheckpointError, match="cannot be written for"):
            save_transformers(parts, tmp_path, task="match")
    assert config.language is not None
    decoder = replace(config.language, embed_width=16, pre_norm=False, final_norm=False)
    with pytest.raises(CheckpointError, match="no OPT of this kind"):
        save_transformers(
            replace(both, network=Blip2Network(replace(config, language=decoder))), tmp_path, task="write"
        )
    assert not list(tmp_path.iterdir())


OPT_2_7B = {"vocab_size": 50304, "hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240}
OPT_6_7B = {"vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32, "ffn_dim": 16384}


@pytest.mark.parametrize(
    ("kind", "side", "text"),
    [
        (Blip2ForConditionalGeneration, 224, OPT_2_7B),
        (Blip2ForConditionalGeneration, 364, OPT_6_7B),
        (Blip2ForImageTextRetrieval, 224, {}),
    ],
    ids=["opt-2.7b", "opt-6.7b-coco", "itm-vit-g"],
)
def test_official_models_have_the_same_names_and_shapes(
    kind: type[PreTrainedModel], side: int, text: dict[str, int], tmp_path: Path
) -> None:
    matches = kind is Blip2ForImageTextRetrieval
    config = Blip2Config(
        vision_config={"image_size": side},
        qformer_config={"use_qformer_text_input": matches, "vocab_size": 30523 if matches else 30522},
        text_config={"model_type": "opt", "num_attention_heads": 32, **text} if text else None,
        architectures=[kind.__name__],
    )
    with torch.device("meta"):
        theirs = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    theirs.pop("language_model.lm_head.weight", None)  # tied
    config.save_pretrained(tmp_path)
    ours = to_transformers(empty_network(read_config(tmp_path).network, tmp_path).state_dict())
    assert {name: tensor.shape for name, tensor in ours.items()} == theirs
