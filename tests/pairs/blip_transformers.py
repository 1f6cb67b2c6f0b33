"""transformers' BLIP models with random weights, and ours of the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from openblip.checkpoints.names.blip import TRANSFORMERS_PARTS, layout_of
from openblip.nn import blip
from openblip.nn.bert import BertConfig
from openblip.nn.vit import VitConfig
from tests.pairs.gaps import difference
from tests.pairs.shake import shake

VOCABULARY, STOP, DECODE, ENCODE = 60, 3, 58, 59
WIDTH, IMAGE_WIDTH = 24, 32
VISION = VitConfig(32, 8, IMAGE_WIDTH, depth=2, num_heads=4, mlp_width=40, final_norm=True)
TEXT = BertConfig(
    VOCABULARY, WIDTH, 2, num_heads=3, ffn_width=48, image_width=IMAGE_WIDTH, max_positions=40, dropout=0.0
)
CONFIGS = {
    "caption": blip.BlipConfig(VISION, decoder=TEXT, decode_id=DECODE, encode_id=ENCODE),
    "match": blip.BlipConfig(VISION, encoder=TEXT, shared_width=12, itm=True, decode_id=DECODE, encode_id=ENCODE),
}


def transformers_config(image_width: int) -> BlipConfig:
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "encoder_hidden_size": image_width,
        "num_hidden_layers": TEXT.depth,
        "num_attention_heads": TEXT.num_heads,
        "intermediate_size": TEXT.ffn_width,
        "max_position_embeddings": TEXT.max_positions,
        "projection_dim": 12,
        "bos_token_id": DECODE,
        "sep_token_id": STOP,
        "eos_token_id": STOP,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    vision = {
        "hidden_size": image_width,
        "image_size": VISION.image_size,
        "patch_size": VISION.patch_size,
        "num_hidden_layers": VISION.depth,
        "num_attention_heads": VISION.num_heads,
        "intermediate_size": VISION.mlp_width,
        "layer_norm_eps": VISION.layer_norm_eps,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=12)


def pair(kind: str) -> tuple[blip.BlipNetwork, Any]:
    """Ours and theirs of one task: "caption", "answer" or "match"."""
    torch.manual_seed(3)
    # Their question model projects nothing: the image has to be as wide as the text.
    width = WIDTH if kind == "answer" else IMAGE_WIDTH
    classes: dict[str, Any] = {
        "caption": BlipForConditionalGeneration,
        "answer": BlipForQuestionAnswering,
        "match": BlipForImageTextRetrieval,
    }
    theirs = classes[kind](transformers_config(width)).eval()
    shake(theirs)
    config = CONFIGS.get(kind)
    if config is None:
        vision = VitConfig(32, 8, WIDTH, depth=2, num_heads=4, mlp_width=40, final_norm=True)
        text = BertConfig(
            VOCABULARY, WIDTH, 2, num_heads=3, ffn_width=48, image_width=WIDTH, max_positions=40, dropout=0.0
        )
        config = blip.BlipConfig(vision, text, text, answers=True, decode_id=DECODE, encode_id=ENCODE)
    ours = blip.BlipNetwork(config).eval()
    ours.load_state_dict(ours_of(theirs.state_dict(), ours))
    return ours, theirs


def ours_of(state: dict[str, Tensor], network: blip.BlipNetwork) -> dict[str, Tensor]:
    found = layout_of(network.config, TRANSFORMERS_PARTS).to_ours(state)
    if "temperature" in network.state_dict():
        found["temperature"] = torch.tensor(0.07)
    return found


@torch.no_grad()
def gaps() -> dict[str, float]:
    """How far ours is from theirs: features, logits of captions, states of questions, ITM logits and ITC cosines."""
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 32, 32, generator=chance)
    ids = torch.randint(5, 50, (2, 6), generator=chance)
    mask = torch.ones_like(ids)
    found: dict[str, float] = {}
    ours, theirs = pair("caption")
    features = ours.image_features(pixels)
    expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    hidden = ours.decoder.decode(ours.decoder.embed(ids), mask, ours.decoder.remember(features))
    found["features"] = difference(features, expected.image_embeds)
    largest = float(expected.logits.abs().max())
    found["caption logits"] = difference(ours.decoder.logits(hidden), expected.logits) / max(1.0, largest)
    ours, theirs = pair("answer")
    ids[:, 0] = ENCODE
    seen = theirs.vision_model(pixels)[0]
    states = theirs.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen)[0]
    found["question states"] = difference(ours.read_together(ids, mask, ours.image_features(pixels)), states)
    ours, theirs = pair("match")
    features = ours.image_features(pixels)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    logits = theirs(**given).itm_score
    found["ITM logits"] = difference(ours.itm_logits(ids, mask, features), logits) / max(1.0, float(logits.abs().max()))
    cosines = ours.project_images(features[:, 0]) @ ours.project_texts(ours.encoder(ids, mask)[:, 0]).T
    found["ITC cosines"] = difference(cosines, theirs(**given, use_itm_head=False).itm_score)
    return found
