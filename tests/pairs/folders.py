"""Whole BLIP-2 models: small folders that transformers wrote, loaded by it and by us, and shown the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import openblip
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.images.transform import ImageTransform, to_pixels
from openblip.models.model import Model
from openblip.nn import t5
from tests.checkpoints.theirs import FLAN, QUERIES, T5, Theirs, write_matcher, write_t5_writer, write_writer
from tests.pairs.gaps import difference
from tests.pairs.prompts import image_features, prompt_row

PROMPTS = ["a dog", "Question: what is it? Answer:"]
TEXTS = ["a red dog", "two children play with a ball on the beach", "dog", "the beach", "red red red"]
RERANKED = 3


@dataclass(frozen=True)
class Written:
    """How far a model that writes is from transformers'.

    Attributes:
        features, prompt, logits: largest differences; logits relative to their largest where this exceeds 1.
        texts, unequal: how many texts both generated, and how many of them differ.
    """

    features: float
    prompt: float
    logits: float
    texts: int
    unequal: int


@dataclass(frozen=True)
class Matched:
    """How far a model that matches is from transformers'.

    Attributes:
        itm, itc: largest differences of probabilities and cosines.
        ranked, unequal: how many searches were made, and how many ended otherwise than LAVIS' rule
            (compute_sim_matrix of its blip2_qformer.py) over transformers' scores says.
    """

    itm: float
    itc: float
    ranked: int
    unequal: int


def noise_images(count: int, seed: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (9 + row, 7, 3), dtype=np.uint8)) for row in range(count)]


def pixel_gap(size: int) -> float:
    """Of the evaluation transform, which is transformers' to the bit."""
    images = [*noise_images(3), Image.fromarray(np.full((300, 200, 3), 255, dtype=np.uint8))]
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    return difference(to_pixels(images, ImageTransform(size)), processor(images, return_tensors="pt")["pixel_values"])


def written_by(kind: str, folder: Path) -> Written:
    """Compare a model with "opt", with "flan" (T5 with a head of its own) or with "t5" (one table for all)."""
    text_config = {"flan": {**FLAN, "dense_act_fn": "gelu"}, "t5": T5}
    theirs = write_writer(folder) if kind == "opt" else write_t5_writer(folder, text_config[kind])
    ours, images = openblip.load(folder, device="cpu"), noise_images(4)
    pixels = theirs.processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = image_features(ours, images)
        prompt = ours.network.visual_prompt(features)
        logits = [_logits(ours, theirs, image, text) for image in images for text in PROMPTS]
        feature_gap = difference(features, theirs.model.vision_model(pixels).last_hidden_state)
        prompt_gap = difference(prompt, theirs.model.get_image_features(pixels).pooler_output)
    same = [_ids(ours, theirs, image, text, beams) for image in images for text in ["", *PROMPTS] for beams in (1, 3)]
    logit_gap = max(difference(mine, other) / max(1.0, other.abs().max().item()) for mine, other in logits)
    return Written(feature_gap, prompt_gap, logit_gap, len(same), same.count(False))


def _inputs(theirs: Theirs, image: Image.Image, text: str) -> dict[str, Tensor]:
    return dict(theirs.processor(images=image, text=text or None, return_tensors="pt"))


def _logits(ours: Model, theirs: Theirs, image: Image.Image, text: str) -> tuple[Tensor, Tensor]:
    row, words = prompt_row(ours, image, text)[None], ours.network.language_model
    if isinstance(words, t5.T5):
        labels = torch.tensor([[5, 9, 30, 41, 1]])
        mine = words.logits(words.hidden_before(row, None, labels))
        return mine, theirs.model(**_inputs(theirs, image, text), labels=labels).logits
    return words.logits(words(row)), theirs.model(**_inputs(theirs, image, text)).logits


def _ids(ours: Model, theirs: Theirs, image: Image.Image, text: str, beams: int) -> bool:
    """Whether both go on with the same ids."""
    inputs, words = _inputs(theirs, image, text), ours.parts.tokenizer
    assert words is not None
    stop = words.only_id(ours.parts.defaults.stop_token)
    ids = theirs.model.generate(**inputs, num_beams=beams, max_new_tokens=9, do_sample=False)[0].tolist()
    # T5's begin with its start token; OPT's with all that was read, where the mark for images stands for what was seen.
    read = inputs["input_ids"].shape[1] if "input_ids" in inputs else QUERIES + 1
    ids = ids[1 if isinstance(ours.network.language_model, t5.T5) else read :]
    options = GenerationOptions(max_new_tokens=9, num_beams=beams, stop_ids=(stop,))
    row = prompt_row(ours, image, text)
    mine = list(generate(ours.network.language_model, [row], options)[0][0].ids)
    return mine == (ids[: ids.index(stop)] if stop in ids else ids)


@torch.no_grad()
def matched(folder: Path) -> Matched:
    """Compare all pairs of some images and texts, and searches both ways."""
    theirs = write_matcher(folder)
    ours, images = openblip.load(folder, device="cpu"), noise_images(11)
    cosines, logits = their_scores(theirs, images, TEXTS)
    scores = ours.scores(images, TEXTS, itm=True)
    assert scores.itm is not None
    yes = logits[..., 1]
    same = []
    for similarity, itm, found in (
        (cosines, yes, ours.rank_texts(images, TEXTS, rerank=RERANKED)),
        (cosines.T, yes.T, ours.rank_images(TEXTS, images, rerank=RERANKED)),
    ):
        for query, ranked in enumerate(found):
            expected, _ = lavis_ranks(similarity[query], itm[query], RERANKED)
            same.append([one.index for one in ranked[:RERANKED]] == expected)
    probabilities = logits.softmax(dim=-1)[..., 1]
    return Matched(difference(scores.itm, probabilities), difference(scores.itc, cosines), len(same), same.count(False))


@torch.no_grad()
def their_scores(theirs: Theirs, images: list[Image.Image], texts: list[str]) -> tuple[Tensor, Tensor]:
    """Cosines [N, M] and ITM logits [N, M, 2] of transformers, one pair at a time."""
    cosines, logits = torch.empty(len(images), len(texts)), torch.empty(len(images), len(texts), 2)
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            inputs = theirs.processor(images=image, text=text, return_tensors="pt")
            cosines[row, column] = theirs.model(**inputs).logits_per_image[0, 0]
            found = theirs.model(**inputs, use_image_text_matching_head=True).logits_per_image
            logits[row, column] = found[0]
    return cosines, logits


def lavis_ranks(similarity: Tensor, yes: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The rule of LAVIS' compute_sim_matrix for one query: the first answers and their scores."""
    scores = torch.full_like(similarity, -100.0)
    best = similarity.topk(count)
    scores[best.indices] = best.values + yes[best.indices]
    order = scores.argsort(descending=True)[:count]
    return order.tolist(), scores[order].tolist()
