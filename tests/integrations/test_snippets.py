"""Scripts that people run give with OpenBLIP what they give with transformers, on the same small checkpoints."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

import openblip
import openblip.integrations.transformers as ours
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.devices import choose_placement
from openblip.errors import ImageError
from openblip.evaluation.metrics import java
from openblip.evaluation.metrics.captions import score_captions
from openblip.evaluation.metrics.vqa import simple_accuracy
from openblip.images.transform import ImageTransform
from openblip.integrations.lavis import load_dataset, setup_task
from openblip.models.load import model_of
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates
from tests.checkpoints.theirs import (
    FLAN,
    OPT,
    QFORMER,
    QUERIES,
    VISION,
    Theirs,
    image_processor,
    opt_words,
    write_matcher,
    write_t5_writer,
    written,
)
from tests.models.blip_models import small_parts
from tests.pairs.blip_transformers import shake

from .coco import TEXTS, write_coco
from .scripts import (
    DISTRIBUTED,
    SCRIPTS,
    Run,
    UploadFile,
    module,
    opened,
    read_table,
    run,
    stand_ins,
    write_table,
)

TOLERANCE = 1e-5
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """An OPT that trains without dropout, reads long prompts, and sometimes comes to an end."""
    folder = tmp_path_factory.mktemp("writer")
    fast = opt_words()
    words = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**QFORMER, **NO_DROPOUT},
        text_config={**OPT, "max_position_embeddings": 256, "dropout": 0.0},
        num_query_tokens=QUERIES,
        image_token_index=len(words),
    )
    processor = Blip2Processor(image_processor(), words, num_query_tokens=QUERIES)
    theirs = written(Blip2ForConditionalGeneration(config), processor, folder)
    noise = [Image.effect_noise((30, 30), 60 * number).convert("RGB") for number in range(1, 5)]
    said = theirs.model.generate(**processor(images=noise, return_tensors="pt"), max_new_tokens=40)[:, QUERIES + 1 :]
    # A stop sign has to be a text of its own.
    texts = [i for i in said.flatten().tolist() if fast.encode(fast.decode([i]), add_special_tokens=False).ids == [i]]
    stop = max(set(texts), key=texts.count)
    theirs.model.config.text_config.eos_token_id = stop
    theirs.model.save_pretrained(folder)
    return Theirs(Blip2ForConditionalGeneration.from_pretrained(folder), processor, folder)


@pytest.fixture(scope="module")
def t5_writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_t5_writer(tmp_path_factory.mktemp("t5"), {**FLAN, "dense_act_fn": "gelu"})


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_matcher(tmp_path_factory.mktemp("matcher"))


@pytest.fixture
def granted(
    writer: Theirs, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], dict[str, Any]]:
    """What scripts take for granted, with OpenBLIP's or with transformers' model where they do not load one."""
    for name, stand_in in stand_ins(image_paths[0]).items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "photos.csv", image_paths[:2])

    def names(reference: bool) -> dict[str, Any]:
        library: Any = transformers if reference else ours
        return {
            "FOLDER": str(writer.folder),
            "PHOTO": image_paths[0],
            "TABLE": table,
            "DEVICE": "cpu",
            "Image": Image,
            "torch": torch,
            "DataLoader": DataLoader,
            "raw_image": opened(image_paths[0]),
            "AutoProcessor": library.AutoProcessor,
            "Blip2ForConditionalGeneration": library.Blip2ForConditionalGeneration,
            "processor": library.Blip2Processor.from_pretrained(writer.folder),
            "model": library.Blip2ForConditionalGeneration.from_pretrained(writer.folder),
        }

    return names


def both(granted: Callable[[bool], dict[str, Any]], *scripts: str, **more: Any) -> tuple[Run, Run]:
    """A script with OpenBLIP and with transformers."""
    return (
        run(scripts, {**granted(False), **more}),
        run(scripts, {**granted(True), **more}, reference=True),
    )


def check_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert torch.allclose(found, expected, atol=TOLERANCE) if found.is_floating_point() else found.equal(expected)
    else:
        assert found == expected


LOADED = ("load in 8 bits", "caption")


@pytest.mark.parametrize(
    ("scripts", "names"),
    [
        (LOADED, ["inputs", "generated_ids", "generated_text"]),
        ((*LOADED, "beam search"), ["generated_ids"]),
        (("load without imports", "ask about an image"), ["generated_ids"]),
        (("caption in half precision",), ["generated_ids", "generated_text"]),
        (("caption in half precision", "and a question"), ["inputs", "generated_ids", "generated_text"]),
        (("ask in 8 bits",), ["out"]),
        (("ask about a document",), ["doc_info"]),
        (("caption a video",), ["captions"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_inference(granted: Callable[[bool], dict[str, Any]], scripts: tuple[str, ...], names: list[str]) -> None:
    found, expected = both(granted, *scripts)
    for name in names:
        if name == "inputs":
            assert found.names[name].keys() == expected.names[name].keys()
            for key in expected.names[name]:
                check_same(found.names[name][key], expected.names[name][key])
        else:
            check_same(found.names[name], expected.names[name])
    assert found.said == expected.said
    assert len(found.shown) == len(expected.shown)
    for ours_shown, theirs_shown in zip(found.shown, expected.shown, strict=True):
        if isinstance(theirs_shown, Tensor):
            check_same(ours_shown, theirs_shown)


def test_random_draws_are_the_same_ones(granted: Callable[[bool], dict[str, Any]]) -> None:
    inputs = {"inputs": granted(True)["processor"](Image.new("RGB", (40, 30), "teal"), return_tensors="pt")}
    drawn = []
    for reference in (False, True):
        torch.manual_seed(5)
        drawn.append(run(["nucleus sampling"], {**granted(reference), **inputs}, reference=reference).shown[0])
    check_same(*drawn)


def test_functions_of_scripts(granted: Callable[[bool], dict[str, Any]], image_paths: list[Path]) -> None:
    told = {"check_colors_and_textures": len, "pd": module("pandas", read_csv=read_table)}
    results = []
    for reference in (False, True):
        names = {**granted(reference), **told}
        table = run(["caption a table of images"], names, reference=reference).names
        asked = run(["ask about an X-ray"], names, reference=reference).names
        demo = run(["gradio"], names, reference=reference).names["demo"]
        results.append(
            [
                [table["generate_text"](row) for row in table["data"]],
                asked["analyze_medical_image"](image_paths[1]),
                demo.fn(opened(image_paths[2])),
                demo.fn(opened(image_paths[2]), "What colors are in this image?"),
            ]
        )
    assert results[0] == results[1]
    assert len({text for text, _ in results[0][0]}) == 2


def test_a_server_and_an_agent(granted: Callable[[bool], dict[str, Any]], image_paths: list[Path]) -> None:
    results = []
    for reference in (False, True):
        app = run(["fastapi"], granted(reference), reference=reference).names["app"]
        asyncio.run(app.called["startup"]())
        agent = run(["langchain"], {**granted(reference), "llm": None}, reference=reference).names["agent"]
        results.append(
            [
                asyncio.run(app.called["/caption"](UploadFile(image_paths[0]))),
                asyncio.run(app.called["/caption"](UploadFile(image_paths[0]), "What is it?")),
                asyncio.run(app.called["/batch_caption"]([UploadFile(image_path) for image_path in image_paths[:3]])),
                agent["image_caption"]._run(str(image_paths[1])),
                agent["visual_qa"]._run(f"{image_paths[1]} | Is it red?"),
            ]
        )
    assert results[0] == results[1]
    assert len(results[0][2]["captions"]) == 3


# Training


@pytest.fixture
def pairs(image_paths: list[Path]) -> list[dict[str, Any]]:
    captions = ["a dog runs on the beach", "two children play", "a red ball", "a dog", "Question: what is it?"]
    return [{"image_path": image_path, "caption": text} for image_path, text in zip(image_paths, captions, strict=True)]


@pytest.fixture
def sets(granted: Callable[[bool], dict[str, Any]], pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dataset that a script makes of captions, with OpenBLIP's processor and with transformers'."""
    return [
        run(["a dataset of captions"], {**granted(reference), "train_data": pairs}, reference=reference).names
        for reference in (False, True)
    ]


def test_the_training_loop_learns_the_same(sets: list[dict[str, Any]], image_paths: list[Path], tmp_path: Path) -> None:
    for key, value in sets[1]["dataset"][1].items():
        check_same(sets[0]["dataset"][1][key], value)
    done = []
    for reference, names in enumerate(sets):
        torch.manual_seed(1)
        os.chdir(Path(tmp_path, str(reference)).mkdir() or tmp_path / str(reference))
        # transformers 5 has no optimizer any more; the one it had began with this eps.
        more = {"AdamW": functools.partial(torch.optim.AdamW, eps=1e-6)} if reference else {}
        done.append(run(["training loop"], {**names, **more}, reference=bool(reference)))
    assert done[0].said == done[1].said and done[0].said.count("Loss") == 3
    assert done[0].names["total_loss"] == pytest.approx(done[1].names["total_loss"], rel=TOLERANCE)
    assert done[0].names["scheduler"].get_last_lr() == done[1].names["scheduler"].get_last_lr()
    # What was saved is a folder of transformers, and the model that transformers trained.
    saved = [tmp_path / number / "blip2-finetuned" for number in ("0", "1")]
    inputs = [
        AutoProcessor.from_pretrained(folder)(opened(image_paths[0]), "a dog", return_tensors="pt") for folder in saved
    ]
    assert inputs[0].keys() == inputs[1].keys()
    models = [Blip2ForConditionalGeneration.from_pretrained(folder) for folder in saved]
    with torch.no_grad():
        logits = [model(**given).logits for model, given in zip(models, inputs, strict=True)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-3 * logits[1].abs().max()
    check_same(models[0].generate(**inputs[0]), models[1].generate(**inputs[1]))


def test_low_rank_adapters_learn_the_same(
    granted: Callable[[bool], dict[str, Any]], pairs: list[dict[str, Any]], image_paths: list[Path], tmp_path: Path
) -> None:
    done = [run(["low-rank adapters"], granted(bool(reference)), reference=bool(reference)) for reference in (0, 1)]
    assert done[0].said.partition(" ||")[0] == done[1].said.partition(" ||")[0] == "trainable params: 8,192"
    models = [one.names["model"] for one in done]
    learning = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
    assert learning[0].keys() == learning[1].keys()
    with torch.no_grad():
        # Layers are drawn in the order in which each library has them, and so is what drops out.
        for name, parameter in learning[0].items():
            parameter.copy_(learning[1][name])
    for layer in [*models[0].modules(), *models[1].modules()]:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    for reference, one in enumerate(done):
        torch.manual_seed(1)
        os.chdir(Path(tmp_path, str(reference)).mkdir() or tmp_path / str(reference))
        more = {"AdamW": functools.partial(torch.optim.AdamW, eps=1e-6)} if reference else {}
        told = {**one.names, "train_data": pairs, **more}
        done[reference] = run(["a dataset of captions", "training loop"], told, reference=bool(reference))
    assert done[0].said == done[1].said and done[0].said.count("Loss") == 3
    folders = [tmp_path / number / "blip2-finetuned" for number in ("0", "1")]
    trained = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    assert trained[0].keys() == trained[1].keys()
    for name, expected in trained[1].items():
        assert expected.abs().max() > 0
        # Where a gradient is nearly zero, Adam makes a step of its sign.
        assert ((trained[0][name] - expected).abs() > 0.01 * expected.abs().max()).float().mean() < 0.01, name
    # Each library takes what was trained in the other.
    base = granted(True)["FOLDER"]
    inputs = granted(True)["processor"](opened(image_paths[0]), "a dog", return_tensors="pt")
    said = []
    for library, folder in [(transformers, folders[0]), (ours, folders[1])]:
        bare = library.Blip2ForConditionalGeneration.from_pretrained(base)
        said.append(peft.PeftModel.from_pretrained(bare, folder).generate(**inputs, max_new_tokens=9))
    check_same(*said)
    # So does the rest of OpenBLIP.
    assert openblip.load(folders[0]).caption(image_paths[0]) == openblip.load(base, adapter=folders[1]).caption(
        image_paths[0]
    )


def test_only_the_qformer_is_trained(granted: Callable[[bool], dict[str, Any]]) -> None:
    found, expected = both(granted, "train the Q-Former only")
    assert found.names["trainable"] == expected.names["trainable"]
    # transformers counts biases of keys in the image encoder, which are zeros.
    zeros = VISION["num_hidden_layers"] * VISION["hidden_size"]
    assert found.names["total"] == expected.names["total"] - zeros
    ours_trained = {
        name.partition(".")[0] for name, parameter in found.names["model"].named_parameters() if parameter.requires_grad
    }
    assert ours_trained == {"qformer"}


def test_data_parallel(granted: Callable[[bool], dict[str, Any]], image_paths: list[Path]) -> None:
    found, expected = both(granted, "DataParallel")
    inputs = granted(True)["processor"](opened(image_paths[0]), "a dog", return_tensors="pt")
    logits = [torch.nn.DataParallel(one.names["model"])(**inputs).logits.float() for one in (found, expected)]
    assert (logits[0] - logits[1]).abs().max() <= TOLERANCE * logits[1].abs().max()


def test_distributed_data_parallel(sets: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[list[Tensor]] = [[], []]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for reference, names in enumerate(sets):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        told = {**names, "num_epochs": 2, "losses": losses[reference], "groups": []}
        run(["DistributedDataParallel"], told, DISTRIBUTED, reference=bool(reference))
    assert len(losses[0]) == 4
    assert torch.stack(losses[0]).tolist() == pytest.approx(torch.stack(losses[1]).tolist(), rel=TOLERANCE)


def test_accelerate(sets: list[dict[str, Any]]) -> None:
    done = []
    for reference, names in enumerate(sets):
        loader = DataLoader(names["dataset"], batch_size=2)
        done.append(run(["accelerate"], {**names, "dataloader": loader}, reference=bool(reference)).names)
    check_same(done[0]["loss"], done[1]["loss"])
    assert all(isinstance(one["optimizer"], accelerate.optimizer.AcceleratedOptimizer) for one in done)


# Export and evaluation


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_image_encoder_becomes_onnx(granted: Callable[[bool], dict[str, Any]], tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"PyTorch exports by {name}")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    done = run(["export the image encoder"], granted(False)).names
    session = runtime.InferenceSession(tmp_path / "blip2_vision.onnx")
    theirs = granted(True)["model"].vision_model
    pixels = torch.cat([done["inputs"]["pixel_values"], torch.randn(2, 3, 28, 28)])
    for batch in (pixels, pixels[:1]):
        found, *_ = session.run(["image_embeds"], {"pixel_values": batch.numpy()})
        with torch.no_grad():
            check_same(torch.from_numpy(found), theirs(batch).last_hidden_state)


def test_outputs_are_seen_through_by_torch_export(granted: Callable[[bool], dict[str, Any]]) -> None:
    encoder = granted(False)["model"].vision_model
    pixels = torch.randn(1, 3, 28, 28)
    found, expected = torch.export.export(encoder, (pixels,)).module()(pixels), encoder(pixels)
    assert type(found) is type(expected) and found.keys() == expected.keys()
    check_same(found.pooler_output, expected.pooler_output)


METEOR = pytest.param(
    True,
    marks=[pytest.mark.slow, pytest.mark.skipif(not java.has_java(), reason="METEOR needs Java")],
    id="with METEOR",
)


@pytest.mark.parametrize("meteor", [pytest.param(False, id="without METEOR"), METEOR])
def test_caption_metrics(meteor: bool) -> None:
    scores = run(["caption metrics"], {}, {} if meteor else {'(Meteor(), "METEOR"),': ""}).names
    captions = {str(name): texts[0] for name, texts in scores["preds"].items()}
    references = {str(name): texts for name, texts in scores["refs"].items()}
    theirs = {name.lower(): value for name, value in scores["scores"].items()}
    assert len(theirs) == 6 + meteor
    assert score_captions(captions, references, official=False, meteor=meteor).table == pytest.approx(theirs, abs=1e-9)


def test_accuracy_of_answers() -> None:
    done = run(["accuracy of answers"], {})
    assert done.said == "VQA Accuracy: 44.44%\n"
    scores = [simple_accuracy(pred, gts) for pred, gts in zip(done.names["preds"], done.names["gts"], strict=True)]
    # Ours leaves articles out, as the official evaluation does: "a dog" and "dog" agree.
    assert scores == [2 / 3, 2 / 3, 1 / 3]


# LAVIS


def write(theirs: Theirs, image_path: Path, prompt: str | None, **options: Any) -> str:
    """What transformers writes with LAVIS' own settings."""
    inputs = theirs.processor(opened(image_path), prompt, return_tensors="pt")
    ids = theirs.model.generate(**inputs, num_beams=5, **options)[0].tolist()
    text_config = theirs.model.config.text_config
    if text_config.model_type == "opt":
        ids = ids[inputs["input_ids"].shape[1] if prompt else QUERIES + 1 :]
    stop = text_config.eos_token_id
    told = ids[: ids.index(stop)] if stop in ids else ids
    return str(theirs.processor.decode(told, skip_special_tokens=True)).strip()


def test_lavis_conversation(t5_writer: Theirs, image_paths: list[Path]) -> None:
    scripts = ["open an image", "load", "ask", "ask why", "chat"]
    found = run([f"LAVIS: {name}" for name in scripts], {"FOLDER": str(t5_writer.folder), "PHOTO": image_paths[0]})
    prompts = [
        "Question: which city is this? Answer:",
        "Question: which city is this? Answer: singapore. Question: why?",
        found.names["prompt"],
    ]
    assert prompts[2].endswith("Question: where is the name merlion coming from? Answer:")
    assert found.shown == [
        (596, 437),
        *([write(t5_writer, image_paths[0], prompt, max_new_tokens=30)] for prompt in prompts),
    ]


@pytest.mark.parametrize("task", ["caption", "answer"])
def test_lavis_captions_and_answers(task: str, image_paths: list[Path], tmp_path: Path) -> None:
    folder = saved(small_parts(task, tmp_path), tmp_path)
    found = run([f"LAVIS: {task}"], {"FOLDER": str(folder), "PHOTO": image_paths[0]})
    model, image = openblip.load(folder), opened(image_paths[0])
    if task == "caption":
        assert found.said == f"{[model.caption(image)]}\n"
    else:
        question = "which university is this photo taken at ?"
        assert found.names["question"] == question
        assert found.said == f"{[model.generate(image, question)]}\n"


def test_lavis_features(image_paths: list[Path], tmp_path: Path) -> None:
    """Shapes are those that LAVIS prints: the widths and the image are BLIP's, the layers are few."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a large fountain sp ##ew ##ing water into the air".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    vision = VitConfig(224, 16, 768, depth=1, num_heads=12, mlp_width=64, final_norm=True)
    text = BertConfig(len(words) + 2, 768, 1, num_heads=12, ffn_width=64, image_width=768, max_positions=64)
    ids = {"decode_id": len(words), "encode_id": len(words) + 1}
    network = BlipNetwork(BlipConfig(vision, text, shared_width=256, **ids)).eval()
    shake(network)
    usual = PromptTemplates(), read_defaults({}, tmp_path)
    folder = saved(assemble("features", network, ImageTransform(224), tmp_path, *usual), tmp_path)
    found = run(["LAVIS: features"], {"FOLDER": str(folder), "PHOTO": image_paths[0]})
    shapes = [[1, 12, 768], [1, 197, 768], [1, 12, 768], [1, 197, 256], [1, 12, 256]]
    assert found.said.splitlines()[:5] == [f"torch.Size({shape})" for shape in shapes]
    match = openblip.load(folder).match(opened(image_paths[0]), found.names["caption"])
    assert found.names["similarity"].item() == pytest.approx(match.itc, abs=TOLERANCE)


def saved(parts: ModelParts[BlipNetwork], folder: Path) -> Path:
    return model_of(parts, choose_placement("cpu", "float32")).save(folder / "model")


@torch.no_grad()
def test_lavis_features_and_matching(matcher: Theirs, image_paths: list[Path]) -> None:
    names = {"FOLDER": str(matcher.folder), "PHOTO": image_paths[0]}
    features = run(["LAVIS: features"], names, {'name="blip_feature_extractor"': 'name="blip2_feature_extractor"'})
    assert isinstance(matcher.model, Blip2ForImageTextRetrieval)
    text = "a large fountain spewing water into the air"
    inputs = matcher.processor(opened(image_paths[0]), text, return_tensors="pt")
    expected = matcher.model(**inputs)
    check_same(features.names["features_image"].image_embeds_proj, expected.image_embeds)
    check_same(features.names["features_text"].text_embeds_proj[:, 0], expected.text_embeds)
    check_same(features.names["similarity"], expected.image_embeds[:, 0] @ expected.text_embeds.t())
    length = inputs["input_ids"].shape[1]
    assert features.said.startswith(f"torch.Size([1, {QUERIES}, 24])\ntorch.Size([1, {QUERIES}, 24])\n")
    assert f"torch.Size([1, {length}, 16])" in features.said
    matched = run(["LAVIS: load for matching", "LAVIS: match", "LAVIS: scores"], names)
    inputs = matcher.processor(opened(image_paths[0]), "merlion in singapore", return_tensors="pt")
    itm = matcher.model(**inputs, use_image_text_matching_head=True).logits_per_image
    check_same(matched.names["itm_output"], itm)
    assert f"with a probability of {itm.softmax(dim=1)[0, 1].item():.3%}" in matched.said
    assert f"has a cosine similarity of {matcher.model(**inputs).logits_per_image.item():.4f}" in matched.said


def test_lavis_common_lines(writer: Theirs, image_paths: list[Path]) -> None:
    names = {"FOLDER": str(writer.folder), "PHOTO": image_paths[0], "question": "Which city is this?"}
    # One model writes captions and answers here, and goes on from prompts.
    found = run(["LAVIS: common lines"], names, {'name="blip_caption"': 'name="blip2_opt"'})
    assert found.shown == [
        [write(writer, image_paths[0], None, max_new_tokens=29)],
        [write(writer, image_paths[0], "which city is this?", max_new_tokens=10, length_penalty=0.0)],
        [write(writer, image_paths[0], "Question: which city is this? Answer:", max_new_tokens=29)],
    ]


def test_lavis_data_sets(tmp_path: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'coco_caption', 'coco_retrieval'" in run(["LAVIS: names of data sets"], {}).said
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    images = write_coco(tmp_path, image_paths)
    lines = run(["LAVIS: a data set"], {}).said.splitlines()
    assert lines[:2] == ["dict_keys(['train', 'val', 'test'])", str(len(TEXTS))]
    assert lines[2].startswith("{'image': <PIL.Image.Image image mode=RGB size=70x90")
    assert lines[2].endswith(f"'text_input': '{TEXTS[0]}', 'image_id': 0, 'instance_id': '0'}}")
    elsewhere = images.rename(tmp_path / "images")
    scripts = ["LAVIS: a data set", "LAVIS: a data set from elsewhere"]
    with pytest.raises(ImageError, match="COCO_val2014"):
        run(scripts[:1], {}).names["coco_dataset"]["val"][0]
    found = run(scripts[1:], {"YOUR_LOCAL_PATH": elsewhere, "load_dataset": load_dataset}).names["coco_dataset"]
    assert found["train"][1]["text_input"] == TEXTS[1] and found["val"][0]["image"].size == (110, 90)


def test_lavis_training(
    writer: Theirs, tmp_path: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    write_coco(tmp_path, image_paths)
    loaded = run(["LAVIS: load for training"], {"FOLDER": str(writer.folder)}).names
    # The document leaves it to its readers to say what cfg, task and datasets are.
    loaded["dataset"]["train"].set_processors(loaded["vis_processors"]["eval"], loaded["txt_processors"]["eval"])
    settings = {
        "init_lr": 1e-2,
        "warmup_steps": 2,
        "max_epoch": 8,
        "batch_size_train": 2,
        "output_dir": tmp_path / "out",
    }
    cfg = {"run": {"task": "captioning", **settings}}
    run(["LAVIS: train"], {**loaded, "cfg": cfg, "task": setup_task(cfg), "datasets": {"coco": loaded["dataset"]}})
    log = [json.loads(line) for line in (tmp_path / "out/log.txt").read_text(encoding="utf-8").splitlines()]
    assert float(log[-1]["train_loss"]) < float(log[1]["train_loss"])
    assert (tmp_path / "out/checkpoint_7.pth").is_file()


def test_lavis_zoo() -> None:
    said = run(["LAVIS: model zoo"], {}).said
    assert "blip2_opt" in said and "pretrain_opt2.7b, caption_coco_opt2.7b" in said
    # As a document of LAVIS shows its table, as far as the models are here.
    shown = {
        "blip_caption": "base_coco, large_coco",
        "blip_classification": "base",
        "blip_feature_extractor": "base",
        "blip_nlvr": "nlvr",
        "blip_pretrain": "base",
        "blip_retrieval": "coco, flickr",
        "blip_vqa": "vqav2, okvqa, aokvqa",
        "clip_feature_extractor": "ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, RN50",
        "clip": "ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, RN50",
    }
    lines = said.splitlines()
    assert all(f"{name:<30} {kinds}" in lines for name, kinds in shown.items())


def test_every_script_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    runs = {name for name in SCRIPTS if f'"{name}"' in source or f'"{name.removeprefix("LAVIS: ")}"' in source}
    assert len(SCRIPTS) == 44 and runs == SCRIPTS.keys()
