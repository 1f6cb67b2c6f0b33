"""BLIP against what LAVIS' own code computed: `OPENBLIP_LAVIS_ZOO=folder pytest -m real THIS_FILE`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.names.blip import LAVIS_PARTS
from openblip.checkpoints.names.engine import Layout
from openblip.generation.candidates import rank_candidates
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.attention_map import match_map, word_map
from openblip.nn.bert_decoder import sequence_loss
from openblip.nn.blip import LABEL_SMOOTHING, BlipLanguageModel, BlipNetwork
from openblip.nn.vit import interpolate_positions
from tests.pairs.blip import Recording, load, need_recordings
from tests.pairs.gaps import difference

pytestmark = pytest.mark.real
CLOSE = 2e-5
GRADIENT = 1e-4


@pytest.fixture(scope="module")
def folder() -> Path:
    return need_recordings()


def close(ours: Tensor, theirs: Tensor, tolerance: float = CLOSE) -> None:
    assert ours.shape == theirs.shape
    assert difference(ours, theirs) <= tolerance


def check_gradients(network: BlipNetwork, loss: Tensor, recorded: dict[str, Tensor]) -> None:
    """Gradients under LAVIS' names; of the tied word table, LAVIS has those of both its names added."""
    own = dict(network.named_parameters())
    places = Layout("LAVIS", LAVIS_PARTS).places(own)
    known = {theirs: own[places[theirs].name] for theirs in recorded if theirs in places}
    assert known
    for theirs, gradient in zip(known, torch.autograd.grad(loss, list(known.values())), strict=True):
        close(gradient, recorded[theirs], GRADIENT)


class Beside(BlipLanguageModel):
    """A model whose images are at hand already, so that tests need no prefix."""

    def __init__(self, network: BlipNetwork, features: Tensor) -> None:
        super().__init__(network)
        self.features = features

    def read(self, prompts, mask, new_tokens, texts=1, memory=None):  # type: ignore[no-untyped-def]
        return super().read(prompts, mask, new_tokens, texts, self.remember(self.features))


def captions(recording: Recording, network: BlipNetwork, settings: dict[str, object]) -> list[list[int]]:
    """Ids of each image's caption, the prompt included."""
    prompt = recording.ids([recording.config["prompt"]], recording.decode_id)[0][:, :-1]
    count = prompt.shape[1]
    model = Beside(network, network.image_features(recording.inputs["image"]))
    options = GenerationOptions(
        num_beams=int(str(settings["num_beams"])),
        max_new_tokens=int(str(settings["max_length"])) - count,
        min_new_tokens=max(0, int(str(settings["min_length"])) - count),
        repetition_penalty=float(str(settings["repetition_penalty"])),
        stop_ids=(3,),
    )
    prompts, ids = [model.embed(prompt[0])] * len(model.features), [prompt[0]] * len(model.features)
    return [[*prompt[0].tolist(), *texts[0].ids] for texts in generate(model, prompts, options, ids)]


def without_padding(ids: Tensor) -> list[list[int]]:
    """Rows up to the stop token."""
    return [row[: row.index(3)] if 3 in row else [i for i in row if i != 0] for row in ids.tolist()]


@pytest.mark.parametrize("kind", ["base", "large"])
def test_captions(folder: Path, kind: str) -> None:
    recording = load(folder, f"blip_caption_{kind}")
    outputs = recording.outputs
    network = recording.network(decoder=recording.bert())
    features = network.image_features(recording.inputs["image"])
    close(features, outputs["image_embeds"])
    ids, mask = recording.ids(recording.inputs["text_input"], recording.decode_id, recording.config["max_txt_len"])
    hidden = network.decoder.decode(network.decoder.embed(ids), mask, network.decoder.remember(features))
    logits = network.decoder.logits(hidden)
    close(logits, outputs["decoder_logits"])
    labels = ids.masked_fill(~mask, -100)
    labels[:, : recording.config["prompt_length"]] = -100
    told = labels[:, 1:]
    loss = sequence_loss(logits, labels, LABEL_SMOOTHING).sum() / (told >= 0).sum()
    close(loss, outputs["loss"])
    check_gradients(network, loss, outputs["gradients"])
    for name, found in outputs["generate"].items():
        each = found["settings"]["num_captions"]
        rows = without_padding(found["ids"])[::each]
        with torch.inference_mode():
            assert captions(recording, network, found["settings"]) == rows, name


def test_vision_blocks(folder: Path) -> None:
    recording = load(folder, "blip_caption_base")
    network = recording.network(decoder=recording.bert())
    x = network.vision.embed(recording.inputs["image"])
    for index, block in enumerate(network.vision.blocks):
        x = block(x)
        close(x, recording.outputs[f"vit_block_{index}"])


@pytest.fixture(scope="module")
def vqa(folder: Path) -> tuple[Recording, BlipNetwork]:
    recording = load(folder, "blip_vqa")
    sizes = recording.bert()
    return recording, recording.network(encoder=sizes, decoder=recording.bert(image_width=sizes.width), answers=True)


def test_answers(vqa: tuple[Recording, BlipNetwork]) -> None:
    recording, network = vqa
    inputs, outputs = recording.inputs, recording.outputs
    model = BlipLanguageModel(network)
    memory = model.remember(network.image_features(inputs["image"]))
    ids, mask = recording.ids(inputs["text_input"], recording.encode_id, 35)
    close(network.encoder(ids, mask, memory), outputs["question_states"])
    answers, answer_mask = recording.ids(inputs["answer"], recording.decode_id)
    rows = torch.arange(len(ids)).repeat_interleave(inputs["n_answers"])
    asked = model.answer_memory(model.embed(ids), mask, memory).take(rows)
    hidden = network.decoder.decode(network.decoder.embed(answers), answer_mask, asked)
    close(network.decoder.logits(hidden), outputs["decoder_logits"])
    labels = answers.masked_fill(~answer_mask, -100)
    logits = network.decoder.logits(
        model.hidden_before(model.embed(ids[rows]), mask[rows], labels[:, 1:], memory.take(rows))
    )
    losses = sequence_loss(F.pad(logits, (0, 0, 0, 1)), labels, LABEL_SMOOTHING)
    close(losses, outputs["decoder_loss_per_answer"])
    loss = (inputs["weight"] * losses).sum() / len(ids)
    close(loss, outputs["loss"])
    check_gradients(network, loss, outputs["gradients"])


def test_generated_answers(vqa: tuple[Recording, BlipNetwork]) -> None:
    """Batches here are as questions alone; LAVIS' batches differ, as its decoder reads the padding of questions."""
    recording, network = vqa
    for name, found in recording.outputs["predict"].items():
        settings = found["settings"]
        if settings["inference_method"] != "generate" or "alone" not in name:
            continue
        row = int(name[-1])
        question = recording.inputs["text_input"][row]
        model = Beside(network, network.image_features(recording.inputs["image"][row : row + 1]))
        options = GenerationOptions(
            num_beams=settings["num_beams"],
            max_new_tokens=settings["max_len"] - 1,
            min_new_tokens=settings["min_len"] - 1,
            stop_ids=(3,),
        )
        ids, _ = recording.ids([question], recording.encode_id, 35)
        with torch.inference_mode():
            ((text,),) = generate(model, [model.embed(ids[0])], options)
        assert [recording.decode_id, *text.ids] == without_padding(found["ids"])[0]


def test_answers_in_a_batch_are_those_alone(vqa: tuple[Recording, BlipNetwork]) -> None:
    recording, network = vqa
    images, questions = recording.inputs["image"], recording.inputs["text_input"]
    rows = [recording.ids([question], recording.encode_id, 35)[0][0] for question in questions]
    options = GenerationOptions(num_beams=3, max_new_tokens=9, min_new_tokens=0, stop_ids=(3,))
    with torch.inference_mode():
        model = Beside(network, network.image_features(images))
        together = generate(model, [model.embed(row) for row in rows], options)
        for index, row in enumerate(rows):
            alone = Beside(network, network.image_features(images[index : index + 1]))
            assert generate(alone, [alone.embed(row)], options)[0][0].ids == together[index][0].ids
    expected = [recording.outputs["predict"][f"generate_alone_{row}"]["ids"] for row in range(len(rows))]
    assert [[recording.decode_id, *texts[0].ids] for texts in together] == [without_padding(e)[0] for e in expected]


def test_ranked_answers(vqa: tuple[Recording, BlipNetwork]) -> None:
    recording, network = vqa
    inputs = recording.inputs
    offered = [recording.ids([answer])[0][0, 1:].tolist() for answer in inputs["answer_list"]]
    for name, found in recording.outputs["predict"].items():
        settings = found["settings"]
        if settings["inference_method"] != "rank":
            continue
        rows = [int(name[-1])] if "alone" in name else range(len(inputs["image"]))
        first = min(settings["num_ans_candidates"], len(offered))
        losses = found["candidate_loss"].view(len(rows), first)
        texts = found["candidate_ids"].view(len(rows), first, -1)
        for place, row in enumerate(rows):
            model = Beside(network, network.image_features(inputs["image"][row : row + 1]))
            ids, _ = recording.ids([inputs["text_input"][row]], recording.encode_id, 35)
            (ranked,) = rank_candidates(model, [model.embed(ids[0])], offered, first=first)
            assert inputs["answer_list"][ranked[0].index] == found["answers"][place]
            theirs = {
                tuple(i for i in text.tolist()[1:] if i): float(loss)
                for text, loss in zip(texts[place], losses[place], strict=True)
            }
            for one in ranked:
                assert -one.score == pytest.approx(theirs[tuple(offered[one.index])], abs=1e-4)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_matching(folder: Path, kind: str) -> None:
    recording = load(folder, f"blip_itm_{kind}")
    outputs = recording.outputs
    network = recording.network(encoder=recording.bert(), shared_width=recording.config["embed_dim"], itm=True)
    features = network.image_features(recording.inputs["image"])
    ids, mask = recording.ids(recording.inputs["text_input"], cut=35)
    close(network.itm_logits(ids, mask, features), outputs["itm_logits"])
    hidden = network.encoder(ids, mask)
    close(hidden, outputs["text_last_hidden"])
    close(network.project_images(features[:, 0]) @ network.project_texts(hidden[:, 0]).T, outputs["itc"])


def test_attention_maps(folder: Path) -> None:
    """Grad-CAM; LAVIS' rows are [ENC], the mean over the words, and every token behind [ENC]."""
    recording = load(folder, "blip_gradcam")
    network = recording.network(
        encoder=recording.bert(), shared_width=len(recording.weights["vision_proj.bias"]), itm=True
    )
    wave = torch.sin(torch.arange(2 * 3 * 384 * 384, dtype=torch.float64) * 0.37)  # the image, as it was recorded
    features = network.image_features(wave.reshape(2, 3, 384, 384).float() * 2)
    ids, mask = recording.ids(recording.inputs["text_input"], cut=35)
    maps = match_map(network, ids, mask, features, recording.inputs["block_num"])
    means = word_map(maps, mask)
    for row, recorded in enumerate(recording.outputs["gradcam"]):
        ours = torch.cat([maps[row, :1], means[row : row + 1], maps[row, 1:]])
        close(ours, recorded.flatten(1), 1e-6)


def test_features(folder: Path) -> None:
    recording = load(folder, "blip_feature_extractor")
    inputs, outputs = recording.inputs, recording.outputs
    network = recording.network(encoder=recording.bert(), shared_width=recording.config["embed_dim"])
    features = network.image_features(inputs["image"])
    close(features, outputs["image"]["image_embeds"])
    close(network.project_images(features), outputs["image"]["image_embeds_proj"])
    ids, mask = recording.ids(inputs["text_input"])
    hidden = network.encoder(ids, mask)
    close(hidden, outputs["text"]["text_embeds"])
    close(network.project_texts(hidden), outputs["text"]["text_embeds_proj"])
    close(network.read_together(ids, mask, features), outputs["multimodal"]["multimodal_embeds"])
    close(interpolate_positions(network.vision.positions, 6, 6), outputs["pos_embed_48"])
    network.vision.resize(48)
    close(network.image_features(outputs["image_48"]), outputs["image_embeds_48"])


def test_retrieval_evaluation(folder: Path) -> None:
    recording = load(folder, "blip_retrieval")
    asked = recording.outputs["evaluation"]
    network = recording.network(encoder=recording.bert(), shared_width=recording.config["embed_dim"], itm=True)
    features = network.image_features(asked["image"])
    ids, mask = recording.ids(asked["texts"], cut=35)
    cosines = network.project_images(features[:, 0]) @ network.project_texts(network.encoder(ids, mask)[:, 0]).T
    close(cosines, asked["cosine"])
    count = len(features)
    logits = network.itm_logits(ids.repeat(count, 1), mask.repeat(count, 1), features)[:, 1].view(count, -1)
    for name, table, odds in (("score_i2t", cosines, logits), ("score_t2i", cosines.T, logits.T)):
        scores = torch.full_like(table, -100.0)
        best = table.topk(asked["k_test"], dim=1).indices
        scores.scatter_(1, best, (odds + table).gather(1, best))
        close(scores, asked[name])


def test_nlvr(folder: Path) -> None:
    recording = load(folder, "blip_nlvr")
    inputs, outputs = recording.inputs, recording.outputs
    classes = outputs["predictions"].shape[1]
    network = recording.network(encoder=recording.bert(images=2), num_classes=classes)
    first, second = network.image_features(inputs["image0"]), network.image_features(inputs["image1"])
    ids, mask = recording.ids(inputs["text_input"])
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in network.encoder.layers]
    logits = network.class_logits(ids, mask, first, second)
    for ours, theirs in zip(seen, outputs["hidden_states"][1:], strict=True):
        close(ours, theirs[:, : ours.shape[1]])  # the last layer's of the first token alone
    for hook in hooks:
        hook.remove()
    close(logits, outputs["predictions"])
    loss = F.cross_entropy(logits, inputs["label"])
    close(loss, outputs["loss"])
    check_gradients(network, loss, outputs["gradients"])


def test_classification(folder: Path) -> None:
    recording = load(folder, "blip_classification")
    classes = recording.outputs["predictions"].shape[1]
    network = recording.network(encoder=recording.bert(), num_classes=classes)
    features = network.image_features(recording.inputs["image"])
    ids, mask = recording.ids(recording.inputs["text_input"], cut=40)
    close(network.class_logits(ids, mask, features), recording.outputs["predictions"])
