"""LAVIS' calls of `clip` and `clip_feature_extractor`, against transformers on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from openblip.errors import CheckpointError, OptionError
from openblip.integrations.lavis import load_model, load_model_and_preprocess, load_processor, model_zoo, registry
from openblip.integrations.lavis.clip import Clip, ClipFeatures
from openblip.integrations.lavis.outputs import Samples
from tests.checkpoints.clip_theirs import SIDE, TEXTS, TheirClip, write_clip
from tests.pairs.gaps import difference

CLOSE = 5e-4
"""Of vectors, which are some 30 long."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TheirClip:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(theirs: TheirClip) -> Clip:
    return cast(Clip, load_model("clip", theirs.folder, is_eval=True))


@pytest.fixture(scope="module")
def samples() -> Samples:
    pixels = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return {"image": pixels, "text_input": TEXTS[:4]}


def test_features_are_transformers(theirs: TheirClip, model: Clip, samples: Samples) -> None:
    inputs = theirs.processor(text=TEXTS[:4], return_tensors="pt", padding=True)
    with torch.no_grad():
        images = theirs.model.get_image_features(samples["image"]).pooler_output
        texts = theirs.model.get_text_features(**inputs).pooler_output
    both = model.extract_features(samples)
    assert isinstance(both, ClipFeatures)
    assert difference(both.image_embeds, images) <= CLOSE and difference(both.text_embeds, texts) <= CLOSE
    assert difference(both.image_embeds_proj, F.normalize(images, dim=-1)) <= 2e-5
    alone = model.extract_features({"image": samples["image"]}), model.extract_features({"text_input": TEXTS[:4]})
    assert torch.equal(cast(torch.Tensor, alone[0]), both.image_embeds)
    assert torch.equal(cast(torch.Tensor, alone[1]), both.text_embeds)


def test_the_loss_is_transformers(theirs: TheirClip, model: Clip, samples: Samples) -> None:
    inputs = theirs.processor(text=TEXTS[:4], return_tensors="pt", padding=True)
    found = model(samples)
    expected = theirs.model(**inputs, pixel_values=samples["image"], return_loss=True).loss
    assert difference(found.loss, expected) <= 2e-5
    assert difference(found.logit_scale_exp, theirs.model.logit_scale.exp()) <= 1e-5
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


def test_long_texts_differ_and_keep_their_ends(model: Clip) -> None:
    """LAVIS gives all of them the feature of their start."""
    long = ["a photo of a dog, " * 30, "two children play, " * 30]
    ids = model.tokenize(long)
    assert ids.shape == (2, 77) and (ids[:, -1] == model.words.end_id).all()
    assert difference(*model.encode_text(ids)[:, None]) > 0.1
    short = model.tokenize("a dog")[0].tolist()
    assert short[: short.index(model.words.end_id) + 1] == model.words.encode("a dog") and short[-1] == 0


def test_classes_and_similarities(model: Clip, samples: Samples) -> None:
    classifier = model.zero_shot_classifier(["dog", "cat", "bus"], ["a photo of a {}", "the {}"])
    assert classifier.shape == (40, 3) and difference(classifier.norm(dim=0), torch.ones(3)) <= 1e-5
    predictions = model.predict(samples, classifier)["predictions"]
    both = cast(ClipFeatures, model.extract_features(samples))
    assert difference(predictions, 100 * both.image_embeds_proj @ classifier) <= 1e-4
    i2t, t2i = model.compute_sim_matrix(samples["image"], TEXTS)
    assert i2t.shape == (4, 6) and torch.equal(i2t.T, t2i)
    assert difference(i2t[:, :4], both.image_embeds_proj @ both.text_embeds_proj.T) <= 1e-5


def test_names_and_processors(theirs: TheirClip) -> None:
    assert registry.get_model_class("clip_feature_extractor") is Clip
    types = dict(model_zoo)
    assert (
        types["clip"] == types["clip_feature_extractor"] == ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "RN50"]
    )
    model, images, _ = load_model_and_preprocess("clip_feature_extractor", theirs.folder, is_eval=True)
    image = Image.linear_gradient("L").resize((50, 40))
    pixels = images["eval"](image)
    named = load_processor("clip_image_eval", {"image_size": SIDE})
    assert torch.equal(pixels, cast(torch.Tensor, named(image)))
    expected = theirs.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert difference(pixels, expected) <= 1e-6
    assert model.extract_features({"image": pixels[None]}).shape == (1, 40)  # type: ignore[operator]


def test_what_is_wrong_is_named(model: Clip, tiny_model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is of the family blip2, no CLIP"):
        load_model("clip", tiny_model_folder)
    with pytest.raises(OptionError, match='"text_input"'):
        model.extract_features({})
    with pytest.raises(OptionError, match='no "image"'):
        model({"text_input": ["a dog"]})
