"""Folders that transformers wrote give its own answers, in every form of file; whatever breaks is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

import openblip
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.transformers.read import load_transformers
from openblip.errors import CheckpointError
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.models.model import Model
from tests.checkpoints.theirs import QUERIES, Theirs, bert_words, opt_words, write_matcher, write_writer
from tests.pairs.prompts import image_features, prompt_row

TOLERANCE = 1e-5
TABLE = "language_model.model.decoder.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
TEXTS = ["a red dog", "two children play with a ball", "dog", "the beach, and nobody?"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_writer(tmp_path_factory.mktemp("models") / "writer")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_matcher(tmp_path_factory.mktemp("models") / "matcher")


@pytest.fixture(scope="module")
def our_writer(writer: Theirs) -> Model:
    return openblip.load(writer.folder, device="cpu")


@pytest.fixture
def folder(writer: Theirs, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(writer.folder, tmp_path / "copy"))


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@torch.no_grad()
def test_features_are_theirs(writer: Theirs, our_writer: Model, image_paths: list[Path]) -> None:
    images = [Image.open(path) for path in image_paths]
    pixels = writer.processor(images=images, return_tensors="pt")["pixel_values"]
    features = image_features(our_writer, images)
    assert difference(features, writer.model.vision_model(pixels).last_hidden_state) <= TOLERANCE
    expected = writer.model.get_image_features(pixels).pooler_output
    assert expected.std() > 0.1
    assert difference(our_writer.network.visual_prompt(features), expected) <= TOLERANCE


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("prompt", [None, "a dog", "Question: what is it? Answer:"])
def test_ids_are_those_of_their_generate(
    writer: Theirs, our_writer: Model, image_paths: list[Path], beams: int, prompt: str | None
) -> None:
    found = our_writer.caption_many(
        image_paths, prompt=prompt or "", num_beams=beams, max_new_tokens=9, min_new_tokens=0
    )
    texts = []
    for path, captioned in zip(image_paths, found, strict=True):
        inputs = writer.processor(images=Image.open(path).convert("RGB"), text=prompt, return_tensors="pt")
        assert "input_ids" not in inputs or inputs["input_ids"].shape[1] > QUERIES + 1
        ids = writer.model.generate(**inputs, num_beams=beams, max_new_tokens=9, do_sample=False)[0].tolist()
        # Behind ids, theirs come as a whole; the mark for images in front stands for what was seen.
        ids = ids[inputs["input_ids"].shape[1] if "input_ids" in inputs else QUERIES + 1 :]
        row = prompt_row(our_writer, path, prompt or "")
        stop = our_writer.parts.stop_id
        options = GenerationOptions(max_new_tokens=9, num_beams=beams, stop_ids=(stop,))
        ours = list(generate(our_writer.network.decoder, [row], options)[0][0].ids)
        assert ours == (ids[: ids.index(stop)] if stop in ids else ids)
        assert captioned.captions[0].tokens == tuple(
            writer.processor.tokenizer.decode([token], skip_special_tokens=True) for token in ours
        )
        texts.append(captioned.text)
    assert len(set(texts)) > 2  # it depends on what is seen


def test_answers_are_theirs(writer: Theirs, our_writer: Model, image_paths: list[Path]) -> None:
    prompt = "Question: what is it? Answer:"
    inputs = writer.processor(images=Image.open(image_paths[0]).convert("RGB"), text=prompt, return_tensors="pt")
    found = writer.model.generate(**inputs, max_new_tokens=7, do_sample=False)[0]
    expected = writer.processor.tokenizer.decode(found[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = our_writer.ask(image_paths[0], "What is it?", num_beams=1, max_new_tokens=7, min_new_tokens=0)
    assert answer == " ".join(expected.split())


@torch.no_grad()
def test_scores_are_theirs(matcher: Theirs, image_paths: list[Path]) -> None:
    ours = openblip.load(matcher.folder, device="cpu")
    images = [Image.open(path).convert("RGB") for path in image_paths]
    plain = [text.replace(",", "").replace("?", "") for text in TEXTS]  # ours are cleaned as LAVIS' are
    for path, image in zip(image_paths, images, strict=True):
        found = ours.match(path, plain)
        for text, match in zip(plain, found, strict=True):
            inputs = matcher.processor(images=image, text=text, return_tensors="pt")
            itm = matcher.model(**inputs, use_image_text_matching_head=True).logits_per_image
            assert abs(match.itm - itm.softmax(dim=1)[0, 1].item()) <= TOLERANCE
            assert abs(match.itc - matcher.model(**inputs).logits_per_image[0, 0].item()) <= TOLERANCE
    pixels = matcher.processor(images=images, return_tensors="pt")["pixel_values"]
    inputs = matcher.processor(text=plain, padding=True, return_tensors="pt")
    expected = matcher.model(pixel_values=pixels, **inputs)
    assert difference(ours.embed_images(image_paths), expected.image_embeds) <= TOLERANCE
    assert difference(ours.embed_texts(plain), expected.text_embeds) <= TOLERANCE
    assert not any(tensor.is_meta for tensor in ours.network.state_dict().values())


# Forms of files


def write_form(folder: Path, form: str) -> None:
    """The same weights as transformers has written them over the years."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if "head" in form:
        state[HEAD] = state.pop(TABLE) if "alone" in form else state[TABLE].clone()
    if "strays" in form:
        state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        state["qformer.embeddings.position_ids"] = torch.arange(5)[None]
    ending = "bin" if "bin" in form else "safetensors"
    stem = "pytorch_model" if ending == "bin" else "model"
    count = 3 if "shards" in form else 1
    names = sorted(state)
    groups = [names[index::count] for index in range(count)]
    files = [f"{stem}.{ending}"] if count == 1 else [f"{stem}-{i + 1:05}-of-{count:05}.{ending}" for i in range(count)]
    for file, group in zip(files, groups, strict=True):
        part = {name: state[name] for name in group}
        torch.save(part, folder / file) if ending == "bin" else save_file(part, folder / file)
    if count > 1:
        places = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / f"{stem}.{ending}.index.json").write_text(index, encoding="utf-8")


@pytest.mark.parametrize(
    "form",
    ["shards", "bin", "bin shards", "bin with head and strays", "head alone", "shards with head", "bin shards strays"],
)
def test_every_form_of_file_gives_the_same_tensors(folder: Path, our_writer: Model, form: str) -> None:
    write_form(folder, form)
    found, expected = load_transformers(folder).network.state_dict(), our_writer.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_safetensors_come_before_pickles(folder: Path, our_writer: Model) -> None:
    torch.save({"nothing": torch.zeros(1)}, folder / "pytorch_model.bin")
    found = load_transformers(folder).network.state_dict()
    assert torch.equal(found["decoder.tokens.weight"], our_writer.network.state_dict()["decoder.tokens.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_cast_on_the_way(folder: Path, our_writer: Model, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    found, expected = (
        load_transformers(folder, ReadOptions(dtype)).network.state_dict(),
        our_writer.network.state_dict(),
    )
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert all(torch.equal(found[name], expected[name].half().to(dtype)) for name in expected)


def test_key_biases_that_were_trained_are_kept(folder: Path, writer: Theirs, image_paths: list[Path]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "vision_model.encoder.layers.1.self_attn.qkv.bias"
    state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(1))
    save_file(state, path)
    assert torch.equal(
        load_transformers(folder).network.state_dict()["vision.blocks.1.attention.qkv.bias"], state[name]
    )


# Vocabularies


def test_a_vocabulary_of_older_files_is_the_same(folder: Path, writer: Theirs) -> None:
    expected = load_transformers(folder).tokenizer
    (folder / "tokenizer.json").unlink()
    opt_words().model.save(str(folder))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "</s>", "special": True}, "pad_token": "<pad>"}), encoding="utf-8"
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": opt_words().get_vocab_size()}), encoding="utf-8")
    found = load_transformers(folder).tokenizer
    assert found is not None and expected is not None
    assert (found.start_id, found.pad_id) == (expected.start_id, expected.pad_id) == (2, 1)
    for text in ["a dog runs\n", "Question: what is it?", " </s>kein Wort: grün\n\n", "<pad>  ", "<image> <image>"]:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))


def test_the_mark_for_images_is_no_word(our_writer: Model, writer: Theirs) -> None:
    words = our_writer.parts.tokenizer
    assert words is not None
    assert writer.processor.tokenizer.convert_tokens_to_ids("<image>") == words.vocab_size
    assert max(words.encode("<image>")) < words.vocab_size
    assert len(words.encode("<image>")) > 1


def test_pieces_of_a_list_are_the_same(matcher: Theirs, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(matcher.folder, tmp_path / "copy"))
    expected = load_transformers(folder).matching
    pieces = bert_words().get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n", encoding="utf-8")
    found = load_transformers(folder).matching
    assert found is not None and expected is not None
    assert found.decoder_start_id == expected.decoder_start_id == len(pieces)
    assert all(found.encode(text) == expected.encode(text) for text in [*TEXTS, "Running [SEP] [MASK] Ünder"])


def test_padding_and_cutting_in_the_file_are_switched_off(folder: Path) -> None:
    expected = load_transformers(folder).tokenizer
    words = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    words.enable_padding(length=20, pad_id=1, pad_token="<pad>")
    words.enable_truncation(3)
    words.save(str(folder / "tokenizer.json"))
    found = load_transformers(folder).tokenizer
    assert found is not None and expected is not None
    assert found.encode("a dog runs on the beach") == expected.encode("a dog runs on the beach")


def test_marks_and_decode_tokens_need_no_row(matcher: Theirs, tmp_path: Path) -> None:
    """The hub's folders count a mark that their word tables end before; a vocabulary may lack [DEC] as well."""
    folder = Path(shutil.copytree(matcher.folder, tmp_path / "copy"))
    rows = bert_words().get_vocab_size()
    path = folder / "model.safetensors"
    state = load_file(path)
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:rows].clone()
    save_file(state, path)
    edit(folder / "config.json", lambda config: config["qformer_config"].update(vocab_size=rows))
    matching = load_transformers(folder).matching
    assert matching is not None
    assert matching.tokenizer.vocab_size == rows
    with pytest.raises(CheckpointError, match=r"\[DEC\]"):
        _ = matching.decoder_start_id


# Faults


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


WEIGHT_FAULTS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda s: s.pop("query_tokens"), "query_tokens is missing from model.safetensors"),
    (lambda s: s.update({"lora.a": torch.zeros(1)}), "lora.a in model.safetensors is unknown"),
    (
        lambda s: s.update(query_tokens=torch.zeros(1, 5, 24)),
        "query_tokens in model.safetensors is [1, 5, 24], not [1, 4, 24]",
    ),
    (
        lambda s: s.update({"vision_model.encoder.layers.0.self_attn.qkv.bias": torch.zeros(107)}),
        "qkv.bias in model.safetensors is [107], not [108]",
    ),
    (
        lambda s: [s.pop(name) for name in list(s) if ".layers.1." in name and name.startswith("language_model")],
        "layers.1.self_attn_layer_norm.bias is missing from model.safetensors; ",
    ),
    (lambda s: s.update({HEAD: s[TABLE] + 1e-3}), "differ, only tied tables can be read"),
]


@pytest.mark.parametrize(("change", "message"), WEIGHT_FAULTS)
def test_weights_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    damaged(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_transformers(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("form", ["", "shards", "bin", "bin shards"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pointer", "gone"])
def test_a_damaged_file_is_named(folder: Path, form: str, damage: str) -> None:
    if form:
        write_form(folder, form)
    path = sorted(file for file in folder.iterdir() if file.suffix in (".bin", ".safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) * 2 // 3],
            "empty": b"",
            "garbage": b"\xff\x00<html>" * 100,
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        }.get(damage, content)
    )
    if damage == "gone":
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_transformers(folder)
    assert (path.name if "shards" in form or damage != "gone" else "holds no weights") in str(caught.value)
    assert ("git lfs pull" in str(caught.value)) == (damage == "pointer")
    assert "\n" not in str(caught.value)


def test_a_tensor_missing_from_a_shard_names_the_shard(folder: Path) -> None:
    write_form(folder, "shards")
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = index["weight_map"]["query_tokens"]
    state = load_file(folder / shard)
    del state["query_tokens"]
    save_file(state, folder / shard)
    with pytest.raises(CheckpointError, match=f"query_tokens is missing from {shard}"):
        load_transformers(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 3])
def test_an_index_stays_in_its_folder(folder: Path, shard: object) -> None:
    write_form(folder, "shards")
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(query_tokens=shard))
    with pytest.raises(CheckpointError, match="no file of this folder"):
        load_transformers(folder)


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("packed", [True, False])
def test_a_hostile_pickle_is_not_executed(folder: Path, tmp_path: Path, packed: bool) -> None:
    write_form(folder, "bin")
    trace, path = tmp_path / "trace", folder / "pytorch_model.bin"
    if packed:
        torch.save({"query_tokens": Hostile(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"query_tokens": Hostile(trace)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_transformers(folder)
    assert not trace.exists()
    if packed:  # it would have been
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"step": 3}, {"model": {"a": torch.zeros(1), "b": [1]}}])
def test_a_pickle_of_other_things_is_named(folder: Path, content: object) -> None:
    write_form(folder, "bin")
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds more than named tensors"):
        load_transformers(folder)


@pytest.mark.parametrize("damage", ["gone", "garbage", "bert", "large", "stop"])
def test_a_vocabulary_of_another_model_is_refused(folder: Path, damage: str) -> None:
    path = folder / "tokenizer.json"
    words = FastTokenizer.from_file(str(path))
    expected = "tokenizer"
    if damage == "gone":
        path.unlink()
        expected = "it needs tokenizer.json, or vocab.json with merges.txt"
    elif damage == "garbage":
        path.write_bytes(b"\xff<html>")
        expected = "vocabulary is broken"
    elif damage == "bert":
        bert_words().save(str(path))
        expected = "the stop token"
    elif damage == "large":
        words.add_tokens([f"new{index}" for index in range(40)])
        words.save(str(path))
        expected = "tokens, the model knows 320: mixed-up files"
    else:
        edit(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=319))
        expected = "the stop token 319"
    with pytest.raises(CheckpointError) as caught:
        load_transformers(folder)
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)


# The entrance


def test_other_models_are_told_apart(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(model_type="llava"))
    with pytest.raises(CheckpointError, match="holds a model of type 'llava': give a folder of OpenBLIP, or"):
        openblip.load(folder, device="cpu")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="another program's model"):
        openblip.load(folder, device="cpu")


def test_the_entrance_casts(folder: Path) -> None:
    model = openblip.load(folder, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
    assert model.name == "copy"
    with pytest.raises(CheckpointError, match="has no text side"):
        model.match("photo.jpg", "a dog")
