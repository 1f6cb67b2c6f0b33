"""CLIPModel and CLIPProcessor give what transformers' give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel as TheirModel
from transformers import CLIPProcessor as TheirProcessor

from openblip.errors import CheckpointError, OptionError
from openblip.integrations.transformers import CLIPModel, CLIPProcessor
from tests.checkpoints.clip_theirs import SIDE, TEXTS, TheirClip, write_clip
from tests.pairs.gaps import difference

CLOSE = 2e-5


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TheirClip:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """One of them is cut half a pixel aside, which transformers rounds down."""
    generator = torch.Generator().manual_seed(6)
    sizes = [(40, 50), (SIDE, SIDE + 3), (90, 31)]
    return [
        Image.fromarray(torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy())
        for size in sizes
    ]


def test_inputs_and_outputs_are_transformers(theirs: TheirClip, images: list[Image.Image]) -> None:
    processor, model = CLIPProcessor.from_pretrained(theirs.folder), CLIPModel.from_pretrained(theirs.folder)
    ours = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True)
    expected = theirs.processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert difference(ours[name].double(), tensor.double()) <= 1e-6, name
    with torch.no_grad():
        found, wanted = model(**ours), theirs.model(**expected)
        assert torch.equal(found.logits_per_image, found[0])
        for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
            assert difference(found[name], wanted[name]) <= 20 * CLOSE, name
        for name, inputs in (
            ("get_image_features", {"pixel_values": ours["pixel_values"]}),
            ("get_text_features", {"input_ids": ours["input_ids"], "attention_mask": ours["attention_mask"]}),
        ):
            features = getattr(theirs.model, name)(**inputs).pooler_output
            assert difference(getattr(model, name)(**inputs).pooler_output, features) <= 20 * CLOSE
        pairs = {"input_ids": ours["input_ids"][:3], "pixel_values": ours["pixel_values"]}
        loss = model(**pairs, return_loss=True).loss
        assert difference(loss, theirs.model(**pairs, return_loss=True).loss) <= CLOSE
    assert model.config.projection_dim == 40 and torch.equal(model.logit_scale, theirs.model.logit_scale)


@pytest.mark.parametrize("end", [2, None])
def test_texts_end_where_the_folder_says(theirs: TheirClip, tmp_path: Path, end: int | None) -> None:
    """OpenAI's folders say 2, which means the largest id; an end in the middle of a text ends it."""
    folder = Path(shutil.copytree(theirs.folder, tmp_path / "folder"))
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["eos_token_id"] = 562 if end is None else end
    (folder / "config.json").write_text(json.dumps(content))
    ids = torch.tensor([[561, 5, 562, 7, 562, 9], [561, 3, 4, 5, 562, 562]])
    with torch.no_grad():
        found = CLIPModel.from_pretrained(folder).get_text_features(ids).pooler_output
        wanted = TheirModel.from_pretrained(folder).get_text_features(ids).pooler_output
    assert difference(found, wanted) <= 20 * CLOSE


def test_what_is_saved_is_transformers(theirs: TheirClip, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(theirs.folder).save_pretrained(tmp_path / "model")
    CLIPProcessor.from_pretrained(theirs.folder).save_pretrained(tmp_path / "processor")
    state = TheirModel.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.model.state_dict().items())
    for folder in ("model", "processor"):
        processor = TheirProcessor.from_pretrained(tmp_path / folder)
        assert processor.tokenizer(TEXTS)["input_ids"] == theirs.processor.tokenizer(TEXTS)["input_ids"]
        assert processor.image_processor.crop_size["height"] == SIDE
    half = CLIPModel.from_pretrained(theirs.folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_what_is_wrong_is_named(theirs: TheirClip, tiny_model_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is of the family blip2, no CLIP"):
        CLIPModel.from_pretrained(tiny_model_folder)
    with pytest.raises(OptionError, match="max_len"):
        CLIPProcessor.from_pretrained(theirs.folder)(text="a", max_len=3)
