"""LAVIS' calls of BLIP give what LAVIS recorded (`-m real`), what transformers gives, and what LAVIS should give."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.lavis.blip import assemble, to_lavis
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import LAVIS_PARTS, layout_of, momentum_tensors
from openblip.checkpoints.openblip.folder import save_native
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, OptionError
from openblip.images.transform import ImageTransform
from openblip.integrations.lavis import (
    compute_gradcam,
    load_model,
    load_model_and_preprocess,
    load_processor,
    model_zoo,
    registry,
)
from openblip.integrations.lavis.blip import BlipCaption, BlipVQA
from openblip.integrations.lavis.blip_classes import BlipClassification, BlipNLVR
from openblip.integrations.lavis.blip_matching import BlipFeatureExtractor, BlipITM
from openblip.integrations.lavis.blip_pairs import BlipPretrain, BlipRetrieval
from openblip.integrations.lavis.outputs import BlipIntermediateOutput, BlipOutput, Samples
from openblip.integrations.lavis.processors import BlipImageTrainProcessor
from openblip.models.load import model_of
from openblip.nn.blip import BlipNetwork
from openblip.text import PromptTemplates
from openblip.training import momentum_losses
from openblip.training.init.reinit import resize
from openblip.training.losses import HardNegatives
from openblip.training.momentum import NO_IMAGE, Momentum
from tests.models.blip_models import VOCABULARY, small_parts
from tests.pairs.blip import Recording, load, need_recordings
from tests.pairs.gaps import difference

CLOSE = 2e-5
REAL = pytest.mark.real


def pixels(count: int, seed: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def zoo() -> Path:
    return need_recordings()


def parts_of(recording: Recording, folder: Path, **settings: Any) -> ModelParts[BlipNetwork]:
    (folder / "vocab.txt").write_text("\n".join(recording.vocabulary) + "\n", encoding="utf-8")
    network = recording.network(**settings)
    prompts, defaults = PromptTemplates(**PROMPTS), read_defaults(GENERATION, folder)
    return assemble("recorded", network, ImageTransform(network.config.vision.image_size), folder, prompts, defaults)


def close(ours: Tensor | None, theirs: Tensor, tolerance: float = CLOSE) -> None:
    assert ours is not None and ours.shape == theirs.shape
    assert difference(ours.detach(), theirs.detach()) <= tolerance * max(1.0, float(theirs.detach().abs().max()))


# Recorded


@REAL
@pytest.mark.parametrize("kind", ["base", "large"])
def test_recorded_captions(zoo: Path, tmp_path: Path, kind: str) -> None:
    recording = load(zoo, f"blip_caption_{kind}")
    parts = parts_of(recording, tmp_path, decoder=recording.bert())
    model = BlipCaption(parts, recording.config["max_txt_len"]).eval()
    samples = cast(Samples, recording.inputs)
    output = model(samples)
    close(output.loss, recording.outputs["loss"])
    inner = output.intermediate_output
    close(inner.decoder_output.logits, recording.outputs["decoder_logits"])
    close(inner.image_embeds, recording.outputs["image_embeds"])
    assert torch.equal(inner.decoder_labels, recording.outputs["decoder_labels"])
    for name, found in recording.outputs["generate"].items():
        captions = model.generate({"image": samples["image"]}, **found["settings"])
        each = found["settings"]["num_captions"]
        # LAVIS cuts 13 letters off, also where the prompt goes on without a space.
        cut = [re.sub("^##.", "", caption) for caption in captions]
        assert cut[::each] == found["captions"][::each], name
        assert len(set(captions)) == len(captions) == 3 * each


@REAL
def test_recorded_answers(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_vqa")
    sizes = recording.bert()
    answers = recording.bert(image_width=sizes.width)
    model = BlipVQA(parts_of(recording, tmp_path, encoder=sizes, decoder=answers, answers=True)).eval()
    inputs, outputs = recording.inputs, recording.outputs
    output = model(cast(Samples, inputs))
    close(output.loss, outputs["loss"])
    close(output.intermediate_output.decoder_output.loss, outputs["decoder_loss_per_answer"])
    assert torch.equal(output.intermediate_output.decoder_labels, outputs["decoder_labels"])
    for name, found in outputs["predict"].items():
        settings = dict(found["settings"])
        rows = slice(int(name[-1]), int(name[-1]) + 1) if "alone" in name else slice(len(found["answers"]))
        questions: Any = inputs["text_input"][rows]
        samples: Samples = {"image": inputs["image"][rows], "text_input": questions}
        if "string" in name:
            samples["text_input"] = questions[0]
        if settings["inference_method"] == "rank":
            settings["answer_list"] = inputs["answer_list"]
        assert model.predict_answers(samples, **settings, read_padding=True) == found["answers"], name
        alone = [
            model.predict_answers({"image": inputs["image"][row : row + 1], "text_input": question}, **settings)[0]
            for row, question in enumerate(inputs["text_input"])
        ]
        assert model.predict_answers(samples, **settings) == alone[rows], name


@REAL
@pytest.mark.parametrize("kind", ["base", "large"])
def test_recorded_matching(zoo: Path, tmp_path: Path, kind: str) -> None:
    recording = load(zoo, f"blip_itm_{kind}")
    settings = {"encoder": recording.bert(), "shared_width": recording.config["embed_dim"], "itm": True}
    model = BlipITM(parts_of(recording, tmp_path, **settings)).eval()
    samples = cast(Samples, recording.inputs)
    close(model(samples, match_head="itm"), recording.outputs["itm_logits"])
    close(model(samples, match_head="itc"), recording.outputs["itc"])
    words = model.tokenizer(samples["text_input"], padding="longest", truncation=True, max_length=35)
    assert words["attention_mask"] == recording.outputs["attention_mask"].tolist()


@REAL
def test_recorded_attention(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_gradcam")
    width = len(recording.weights["vision_proj.bias"])
    model = BlipITM(parts_of(recording, tmp_path, encoder=recording.bert(), shared_width=width, itm=True)).eval()
    wave = torch.sin(torch.arange(2 * 3 * 384 * 384, dtype=torch.float64) * 0.37)  # the image, as it was recorded
    image = wave.reshape(2, 3, 384, 384).float() * 2
    texts = recording.inputs["text_input"]
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt")
    maps, logits = compute_gradcam(model, image, texts, tokens, recording.inputs["block_num"])
    close(logits, recording.outputs["itm_logits"])
    for ours, theirs in zip(maps, recording.outputs["gradcam"], strict=True):
        close(ours, theirs, 1e-6)


@REAL
def test_recorded_features(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_feature_extractor")
    settings = {"encoder": recording.bert(), "shared_width": recording.config["embed_dim"]}
    model = BlipFeatureExtractor(parts_of(recording, tmp_path, **settings)).eval()
    samples = cast(Samples, recording.inputs)
    larger = BlipFeatureExtractor(resize(parts_of(recording, tmp_path, **settings), 48)).eval()
    torch.save({"model": recording.weights}, tmp_path / "checkpoint.pth")
    larger.load_from_pretrained(tmp_path / "checkpoint.pth")
    close(larger.network.vision.positions, recording.outputs["pos_embed_48"])
    found_48 = larger.extract_features({"image": recording.outputs["image_48"]}, mode="image").image_embeds
    close(found_48, recording.outputs["image_embeds_48"])
    for mode in ("image", "text", "multimodal"):
        found = vars(model.extract_features(samples, mode=mode))
        wanted = recording.outputs[mode]
        assert {name for name, value in found.items() if value is not None} == wanted.keys()
        for name, tensor in wanted.items():
            close(found[name], tensor)


@REAL
def test_recorded_retrieval(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_retrieval")
    settings = {"encoder": recording.bert(), "shared_width": recording.config["embed_dim"], "itm": True}
    model = BlipRetrieval(parts_of(recording, tmp_path, **settings)).eval()
    asked = recording.outputs["evaluation"]
    loader = Loader(asked["texts"], [{"image": part} for part in asked["image"].split(2)])
    found = model.compute_sim_matrix(loader, SimpleNamespace(k_test=asked["k_test"]))
    for name, scores in zip(("score_i2t", "score_t2i"), found, strict=True):
        close(torch.from_numpy(scores), asked[name])


@REAL
def test_recorded_nlvr(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_nlvr")
    inputs, outputs = recording.inputs, recording.outputs
    parts = parts_of(recording, tmp_path, encoder=recording.bert(images=2), num_classes=recording.config["num_classes"])
    model = BlipNLVR(parts).eval()
    samples = cast(Any, inputs)
    close(model(samples)["loss"], outputs["loss"])
    found = model.predict(samples)
    close(found["predictions"], outputs["predictions"])
    assert found["targets"] is inputs["label"]
    swapped = {**inputs, "image0": inputs["image1"], "image1": inputs["image0"]}
    close(model(cast(Any, swapped), is_train=False)["predictions"], outputs["swapped_predictions"])


@REAL
def test_recorded_classification(zoo: Path, tmp_path: Path) -> None:
    recording = load(zoo, "blip_classification")
    classes = recording.config["num_classes"]
    model = BlipClassification(parts_of(recording, tmp_path, encoder=recording.bert(), num_classes=classes)).eval()
    close(model.predict(cast(Any, recording.inputs))["predictions"], recording.outputs["predictions"])


@REAL
@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
def test_recorded_losses_of_pairs(zoo: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = load(zoo, f"blip_{task}")
    config, text = recording.config, recording.bert()
    shared = {"decoder": text, "shares_text": True} if task == "pretrain" else {}
    settings = {"encoder": text, "shared_width": config["embed_dim"], "itm": True, **shared}
    kind: Any = BlipPretrain if task == "pretrain" else BlipRetrieval
    model = kind(
        parts_of(recording, tmp_path, **settings), config["max_txt_len"], config["alpha"], config["momentum"]
    ).eval()
    copies = Momentum(model.network, config["queue_size"], config["momentum"])
    layout = layout_of(model.network.config, LAVIS_PARTS)
    found = momentum_tensors(recording.weights, layout, copies.weights, recording.weights.__getitem__)
    assert copies.load({"ids": torch.full((config["queue_size"],), NO_IMAGE), **found})
    model.copies = copies
    outputs = recording.outputs
    drawn = HardNegatives(outputs["negative_image_for_text"], outputs["negative_text_for_image"])
    monkeypatch.setattr(momentum_losses, "draw_negatives", lambda *_: drawn)
    output = model(recording.inputs)
    for name in ("loss", "loss_itc", "loss_itm", "loss_lm"):
        if name in outputs:
            close(getattr(output, name), outputs[name])


@REAL
def test_recorded_processors(zoo: Path) -> None:
    recorded = torch.load(zoo / "processors.pth", weights_only=True)
    inputs, outputs = recorded["inputs"], recorded["outputs"]
    processors: dict[str, Any] = {
        "blip_caption": load_processor("blip_caption"),
        "blip_caption_prompt": load_processor("blip_caption", {"prompt": "a picture of "}),
        "blip_question": load_processor("blip_question"),
    }
    for name, processor in processors.items():
        assert [processor(text) for text in inputs["texts"]] == outputs[name]
    for name in ("wide", "tall", "small", "odd"):
        image = Image.fromarray(inputs[f"picture_{name}"].numpy())
        for kind in ("blip", "clip"):
            ours: Any = load_processor(f"{kind}_image_eval", {"image_size": 32})
            close(ours(image), outputs[f"{kind}_image_eval_32_{name}"], 1e-6)


# On small models


class Loader:
    """Batches of images, and all texts: what LAVIS evaluates retrieval on."""

    def __init__(self, texts: list[str], batches: list[Samples]) -> None:
        self.dataset = SimpleNamespace(text=texts)
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.fixture
def captioner(tmp_path: Path) -> BlipCaption:
    return BlipCaption(small_parts("caption", tmp_path)).eval()


def test_captions_are_those_of_our_own_calls(captioner: BlipCaption, tmp_path: Path) -> None:
    """Lengths count [DEC] and the prompt, 4 tokens; a caption does not depend on its batch."""
    samples: Samples = {"image": pixels(3)}
    model = model_of(small_parts("caption", tmp_path), choose_placement("cpu", "float32"))
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    processor: Any = load_processor("blip_image_eval", {"image_size": 32})
    one: Samples = {"image": processor(image)[None]}
    assert captioner.generate(one) == [model.caption(image)]
    assert captioner.generate(one, num_beams=1, max_length=9, min_length=0) == [
        model.caption(image, num_beams=1, max_new_tokens=5, min_new_tokens=0)
    ]
    alone = [captioner.generate({"image": row[None]})[0] for row in samples["image"]]
    assert captioner.generate(samples) == alone
    prompts = ["a dog", "two children play with", "a dog"]
    mixed = captioner.generate({**samples, "prompt": prompts}, max_length=14)
    for place, prompt in enumerate(prompts):
        image_alone: Samples = {"image": samples["image"][place : place + 1], "prompt": prompt}
        assert captioner.generate(image_alone, max_length=14) == [mixed[place]]


def test_weights_of_another_image_size(tmp_path: Path) -> None:
    """Positions are interpolated between the middles of patches; the class token's stays."""
    one = BlipCaption(small_parts("caption", tmp_path, seed=2))
    other = BlipCaption(resize(small_parts("caption", tmp_path), 48))
    torch.save({"model": one.checkpoint()}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="is for images of 32 pixels, the model for 48: load_from_pretrained"):
        other.load_checkpoint(tmp_path / "checkpoint.pth")
    other.load_from_pretrained(str(tmp_path / "checkpoint.pth"))
    small, large = (model.network.vision.positions.detach() for model in (one, other))
    grid = small[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    close(large[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(large[:, 0], small[:, 0])
    assert torch.equal(other.network.decoder.words.weight, one.network.decoder.words.weight)
    same = BlipCaption(small_parts("caption", tmp_path))
    same.load_checkpoint(tmp_path / "checkpoint.pth")
    assert torch.equal(same.network.vision.positions, one.network.vision.positions)
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        same.load_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(("task", "kind"), [("pair", BlipNLVR), ("entail", BlipClassification)])
def test_a_file_of_pre_training_gives_what_it_has(tmp_path: Path, task: str, kind: type[BlipNLVR]) -> None:
    """Attention to one image is doubled; heads, what merges, and momentum copies come from elsewhere."""
    one = small_parts("match", tmp_path, seed=2).network
    state = to_lavis(one)
    state |= {name.replace("text_encoder.", "text_encoder_m."): state[name] for name in state if "text_enc" in name}
    torch.save({"model": state, "epoch": 1}, tmp_path / "pretrained.pth")
    model = kind(small_parts(task, tmp_path / task))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.load_from_pretrained(tmp_path / "pretrained.pth")
    after, own = model.network.state_dict(), one.state_dict()
    for name, tensor in after.items():
        kept = name.startswith("class_head.") or ".merge." in name
        single = name.replace(".first.", ".").replace(".second.", ".")
        assert torch.equal(tensor, before[name] if kept else own[single]), name
    # LAVIS' own file of the model, with its head, is read as it is.
    torch.save({"model": model.checkpoint()}, tmp_path / "tuned.pth")
    other = kind(small_parts(task, tmp_path / task, seed=3))
    other.load_from_pretrained(tmp_path / "tuned.pth")
    assert all(torch.equal(tensor, after[name]) for name, tensor in other.network.state_dict().items())


def test_several_captions_of_an_image_differ(captioner: BlipCaption) -> None:
    found = captioner.generate({"image": pixels(2)}, num_captions=4)
    assert len(found) == 8 and len(set(found[:4])) == 4
    assert found[::4] == captioner.generate({"image": pixels(2)}, num_beams=4)
    torch.manual_seed(0)
    drawn = captioner.generate({"image": pixels(1)}, use_nucleus_sampling=True, num_captions=3)
    torch.manual_seed(0)
    assert drawn == captioner.generate(
        {"image": pixels(1)}, use_nucleus_sampling=True, num_captions=3, repetition_penalty=1.1
    )


def test_caption_loss(captioner: BlipCaption) -> None:
    """The prompt is not learnt; one word without a prompt is, where LAVIS gives nan."""
    texts = ["a picture of a dog", "beach", "a picture of two children on the red ball"]
    output = captioner({"image": pixels(3), "text_input": texts})
    assert isinstance(output, BlipOutput) and isinstance(output.intermediate_output, BlipIntermediateOutput)
    labels = output.intermediate_output.decoder_labels
    assert (labels >= 0).sum(dim=1).tolist() == [3, 2, 7]
    logits = output.intermediate_output.decoder_output.logits
    flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    close(output.loss, torch.nn.functional.cross_entropy(flat, wanted, label_smoothing=0.1))
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in captioner.parameters())


@pytest.fixture
def answerer(tmp_path: Path) -> BlipVQA:
    return BlipVQA(small_parts("answer", tmp_path)).eval()


QUESTIONS = ["what is this?", "how many children play with the red ball on the beach?"]


def test_answers_do_not_depend_on_padding(answerer: BlipVQA) -> None:
    samples: Samples = {"image": pixels(2), "text_input": QUESTIONS}
    alone = [
        answerer.predict_answers({"image": row[None], "text_input": text})[0]
        for row, text in zip(samples["image"], QUESTIONS, strict=True)
    ]
    assert answerer.predict_answers(samples) == alone
    padded = answerer.predict_answers(samples, read_padding=True, max_len=20)
    assert padded[1] == answerer.predict_answers(samples, max_len=20)[1]
    ranked = answerer.predict_answers(samples, answer_list=["Dog", "cat", "red ball"], num_ans_candidates=2)
    assert set(ranked) <= {"Dog", "cat", "red ball"}


def test_answer_loss_weighs_answers(answerer: BlipVQA) -> None:
    samples: Samples = {
        "image": pixels(2),
        "text_input": QUESTIONS,
        "answer": ["dog", "a cat", "two"],
        "n_answers": torch.tensor([2, 1]),
        "weight": torch.tensor([0.7, 0.3, 1.0]),
    }
    output = answerer(samples)
    each = output.intermediate_output.decoder_output.loss
    close(output.loss, (each * torch.tensor([0.7, 0.3, 1.0])).sum() / 2)
    alone = answerer({"image": pixels(2)[:1], "text_input": QUESTIONS[0], "answer": ["a cat"]})
    close(alone.loss, each[1])
    with pytest.raises(OptionError, match=r"says \[1, 1\] for 2 images, and there are 3 answers"):
        answerer({**samples, "n_answers": [1, 1]})


@pytest.fixture
def matcher_folder(tmp_path: Path) -> Path:
    parts = small_parts("match", tmp_path)
    return model_of(parts, choose_placement("cpu", "float32")).save(tmp_path / "matcher")


def test_matching_features_and_retrieval(matcher_folder: Path) -> None:
    texts = ["a dog on the beach", "a red ball", "two children"]
    model = cast(BlipITM, load_model("blip_image_text_matching", matcher_folder, is_eval=True))
    extractor = cast(BlipFeatureExtractor, load_model("blip_feature_extractor", matcher_folder, is_eval=True))
    images = pixels(2)
    cosines = model({"image": images, "text_input": texts}, match_head="itc")
    embeds = extractor.extract_features({"image": images}, mode="image").image_embeds_proj
    words = extractor.extract_features({"text_input": texts}, mode="text").text_embeds_proj
    assert embeds is not None and words is not None
    assert embeds.shape == (2, 17, 16) and words.shape == (3, 7, 16)
    close(cosines, embeds[:, 0] @ words[:, 0].T)
    together = extractor.extract_features({"image": images, "text_input": texts[:2]})
    assert together.image_embeds is not None and together.multimodal_embeds is not None
    logits = model({"image": images[:1], "text_input": texts})
    assert logits.shape == (3, 2)
    close(logits[:1], model.network.itm_head(together.multimodal_embeds[:1, 0]))
    retrieval = cast(BlipRetrieval, load_model("blip_retrieval", matcher_folder, is_eval=True))
    batches: list[Samples] = [{"image": images[:1]}, {"image": images[1:]}]
    scores, back = retrieval.compute_sim_matrix(Loader(texts, batches), {"k_test": 2})
    second = model({"image": images[1:], "text_input": texts})
    whole = torch.stack([logits[:, 1], second[:, 1]]) + cosines
    best = torch.zeros_like(cosines, dtype=torch.bool).scatter(1, cosines.topk(2).indices, True)
    close(torch.from_numpy(scores), whole.masked_fill(~best, -100.0))
    close(torch.from_numpy(back), whole.T)
    ids, mask = model.tokenizer(texts, padding=True, return_tensors="pt").values()
    fits = retrieval.compute_itm(model.image_features({"image": images[:1]}).expand(3, -1, -1), ids, mask)
    close(fits, logits[:, 1])


@pytest.mark.parametrize("task", ["match", "pretrain"])
def test_pairs_are_learnt(tmp_path: Path, task: str) -> None:
    """Momentum copies begin as the network, and follow it; queues fill up, whatever the batch."""
    torch.manual_seed(7)
    kind: Any = BlipPretrain if task == "pretrain" else BlipRetrieval
    model = kind(small_parts(task, tmp_path), queue_size=5)
    samples: Samples = {
        "image": pixels(4),
        "text_input": ["a dog", "a red ball", "two children", "the beach"],
        "image_id": torch.tensor([1, 1, 2, 3]),
        "epoch": 1,
        "iters": 2,
        "num_iters_per_epoch": 4,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(6):
        output = model(samples)
        assert output.loss.item() == pytest.approx(
            sum(part.item() for part in (output.loss_itc, output.loss_itm, output.loss_lm) if part is not None)
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert (output.loss_lm is not None) == (task == "pretrain")
    assert model.copies is not None and int(model.copies.place) == 24 % 5
    weight = model.network.text_projection.weight
    assert 0 < difference(model.copies.weights["text_projection.weight"], weight.detach()) < 0.01
    assert output.loss.isfinite() and set(model.copies.ids.tolist()) <= {1, 2, 3, NO_IMAGE}


def test_attention_maps(matcher_folder: Path) -> None:
    model = cast(BlipITM, load_model("blip_image_text_matching", matcher_folder, is_eval=True))
    texts = ["a dog", "two children play"]
    maps, logits = compute_gradcam(model, pixels(2), texts, block_num=0)
    assert [tuple(one.shape) for one in maps] == [(6, 4, 4)] * 2
    close(logits, model({"image": pixels(2), "text_input": texts}))
    close(maps[0][1], maps[0][2:4].mean(dim=0))
    assert not maps[0][5].any() and maps[1][4].any()  # behind [ENC] and the mean, 2 words, [SEP] and padding
    with pytest.raises(OptionError, match="block_num is 6: the text encoder has 2 layers"):
        compute_gradcam(model, pixels(2), texts)


def test_statements_are_classified_and_learnt(tmp_path: Path) -> None:
    """Losses against the network's own logits; copies begin as the network is, and labels are needed to learn alone."""
    texts, labels = ["a dog on the beach", "two children play"], torch.tensor([1, 0])
    for task, kind in (("pair", BlipNLVR), ("entail", BlipClassification)):
        small_parts(task, tmp_path / task)
        save_native(small_parts(task, tmp_path / task), tmp_path / f"{task} model")
        name = "blip_nlvr" if task == "pair" else "blip_classification"
        model, _, words = load_model_and_preprocess(name, tmp_path / f"{task} model", is_eval=True)
        assert isinstance(model, kind)
        samples: dict[str, Any] = {"text_input": [words["eval"](text) for text in texts]}
        shown = [pixels(2), pixels(2, seed=5)] if task == "pair" else [pixels(2)]
        samples |= zip(("image0", "image1") if task == "pair" else ("image",), shown, strict=True)
        predicted = model.predict(samples)
        assert predicted["targets"] is None and predicted["predictions"].shape == (2, 2 if task == "pair" else 3)
        with pytest.raises(OptionError, match='have no "label"'):
            model(samples)
        found = model({**samples, "label": labels, "epoch": 2})
        expected = torch.nn.functional.cross_entropy(predicted["predictions"], labels)
        if task == "pair":
            close(found["loss"], expected)
            with pytest.raises(OptionError, match='need "image0" and "image1"'):
                model.predict({"text_input": texts, "image": shown[0]})
        else:
            close(found.logits_m, predicted["predictions"])
            soft = predicted["predictions"].softmax(dim=1)
            close(found.loss, 0.6 * expected + 0.4 * torch.nn.functional.cross_entropy(predicted["predictions"], soft))
            with pytest.raises(OptionError, match="a number below 3"):
                model({**samples, "label": torch.tensor([1, 3])})
        other = "blip_classification" if task == "pair" else "blip_nlvr"
        with pytest.raises(CheckpointError, match="cannot judge statements about"):
            load_model(other, tmp_path / f"{task} model")
    with pytest.raises(CheckpointError, match="nobody has published weights of blip_classification/base"):
        load_model("blip_classification", "base")


def test_tokenizer_is_called_as_transformers(captioner: BlipCaption, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    theirs = cast(Any, transformers).BertTokenizer.from_pretrained(tmp_path)
    theirs.add_special_tokens({"bos_token": "[DEC]"})
    theirs.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    texts = ["a Dog, playing", "two children"]
    ours, expected = (words(texts, padding=True, return_tensors="pt") for words in (captioner.tokenizer, theirs))
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(ours[name], expected[name])


def test_names_and_processors(tmp_path: Path) -> None:
    types = dict(model_zoo)
    assert types["blip_caption"] == ["base_coco", "large_coco"] and types["blip_vqa"] == ["vqav2", "okvqa", "aokvqa"]
    assert types["blip_image_text_matching"] == ["base", "large"] and types["blip_retrieval"] == ["coco", "flickr"]
    assert types["blip_feature_extractor"] == ["base"]
    assert registry.get_model_class("blip_vqa") is BlipVQA
    for task, name in (("caption", "blip_caption"), ("answer", "blip_vqa")):
        parts = small_parts(task, tmp_path / task)
        folder = model_of(parts, choose_placement("cpu", "float32")).save(tmp_path / task / "model")
        _, images, texts = load_model_and_preprocess(name, folder, is_eval=True)
        assert type(images["train"]) is BlipImageTrainProcessor
        torch.manual_seed(2)
        seen = [images["train"](Image.effect_noise((50, 40), 70)) for _ in range(2)]
        assert seen[0].shape == (3, 32, 32) and not torch.equal(*seen)
        assert images["eval"](Image.new("RGB", (50, 40))).shape == (3, 32, 32)
        if task == "caption":
            assert texts["train"]("A 3.5 dog.") == "a picture of a 3 5 dog" and texts["eval"]("A dog.") == "a dog"
        else:
            assert texts["train"]("A 3.5 dog?") == texts["eval"]("A 3.5 dog?") == "a 35 dog?"


def test_what_is_wrong_is_named(captioner: BlipCaption, answerer: BlipVQA, matcher_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write captions"):
        load_model("blip_caption", matcher_folder)
    with pytest.raises(OptionError, match=r"max_length is 4 and \[DEC\] and the prompt are 4 tokens"):
        captioner.generate({"image": pixels(1)}, max_length=4)
    with pytest.raises(OptionError, match='no "image"'):
        captioner.generate({})
    with pytest.raises(OptionError, match="nothing to choose from"):
        answerer.predict_answers({"image": pixels(1), "text_input": "what?"}, inference_method="rank")
    with pytest.raises(OptionError, match="use rank or generate"):
        answerer.predict_answers({"image": pixels(1), "text_input": "what?"}, inference_method="guess")  # type: ignore[arg-type]
    model = load_model("blip_image_text_matching", matcher_folder, is_eval=True)
    with pytest.raises(OptionError, match="3 texts for 2 images"):
        model({"image": pixels(2), "text_input": ["a", "b", "c"]})
    with pytest.raises(OptionError, match="use itm or itc"):
        model({"image": pixels(1), "text_input": "a"}, match_head="both")
