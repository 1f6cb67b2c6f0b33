"""Every official name, at its real size: on the meta device the keys and shapes of the files it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Blip2Config as TheirConfig
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from openblip.checkpoints.blip2_models import OFFICIAL
from openblip.checkpoints.hub.sources import WebFile
from openblip.checkpoints.lavis.write import to_lavis
from openblip.checkpoints.model_entry import VISION, ModelEntry
from openblip.checkpoints.names.engine import BLIP2_LANGUAGE
from openblip.checkpoints.names.t5 import TIED as T5_TIED
from openblip.checkpoints.names.transformers import to_transformers
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.transformers.config import read_config
from openblip.nn.blip2 import Blip2Network

from .official import FILES, official, shapes_of

HUB = [model for model in OFFICIAL if model.origin == "transformers"]
TIED = ("language_model.lm_head.weight", *(BLIP2_LANGUAGE + name for name in T5_TIED))


def text_config(model: ModelEntry) -> dict[str, Any]:
    language = model.language
    assert language is not None
    if language.kind == "opt":
        return {
            "model_type": "opt",
            "vocab_size": language.vocab_size,
            "hidden_size": language.width,
            "word_embed_proj_dim": language.width,
            "num_hidden_layers": language.depth,
            "num_attention_heads": language.num_heads,
            "ffn_dim": language.ffn_width,
        }
    return {
        "model_type": "t5",
        "d_model": language.width,
        "d_ff": language.ffn_width,
        "num_layers": language.depth,
        "num_heads": language.num_heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("model", HUB, ids=[model.name for model in HUB])
def test_names_and_shapes_on_the_hub_are_those_of_transformers(model: ModelEntry, tmp_path: Path) -> None:
    kind = Blip2ForImageTextRetrieval if model.language is None else Blip2ForConditionalGeneration
    matches = model.language is None
    config = TheirConfig(
        vision_config={"image_size": model.image_size},
        qformer_config={"use_qformer_text_input": matches, "vocab_size": 30523 if matches else 30522},
        text_config=None if matches else text_config(model),
        architectures=[kind.__name__],
    )
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    t5 = model.language is not None and model.language.kind == "t5"
    for name in TIED[1:] if t5 else TIED[:1]:
        theirs.pop(name, None)
    config.save_pretrained(tmp_path)
    for network in (model.config(), read_config(tmp_path).network):
        ours = to_transformers(empty_network(network, tmp_path).state_dict())
        assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == theirs


def written(model: ModelEntry) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LAVIS model's main file."""
    config = model.config()
    with torch.device("meta"):
        found = to_lavis(Blip2Network(config).state_dict(), config)
    tensors = found.whole() if VISION in model.files[0].supplies else found.checkpoint
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_two_files_without_a_list_are_put_together_from_those_with_one() -> None:
    """Every other file of LAVIS has its own list, see test_lavis_export.py."""
    names = {model.name: source.name for model in OFFICIAL for source in model.files[:1] if isinstance(source, WebFile)}
    assert {name for name, file in names.items() if file not in FILES} == {
        "blip2_opt/caption_coco_opt6.7b",
        "blip2_t5/pretrain_flant5xl_vitL",
    }
    # The smaller tuned model, with the larger language model's projection and stray.
    large = {
        name: shape
        for name, shape in shapes_of("blip2_pretrained_opt6.7b.pth").items()
        if name.startswith(("opt_proj.", "opt_model."))
    }
    tuned = shapes_of("blip2_caption_opt2.7b.pth")
    assert large.keys() <= tuned.keys()
    assert written(official("blip2_opt/caption_coco_opt6.7b")) == {**tuned, **large}
    # FLAN-T5 XL's file, whose Q-Former and norm read CLIP's narrower features.
    narrow = shapes_of("blip2_pretrained_vitL.pth")
    wide = shapes_of("blip2_pretrained_flant5xl.pth")
    expected = {name: narrow.get(name, shape) for name, shape in wide.items()}
    assert written(official("blip2_t5/pretrain_flant5xl_vitL")) == expected
