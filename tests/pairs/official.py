"""BLIP and CLIP at the widths, images and vocabularies of official models, with few layers: transformers' and ours.

Every weight is random; layers of one kind are alike, so that two of each tell what many would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
)

from openblip.checkpoints.clip_models import clip_config
from openblip.checkpoints.names.blip import TRANSFORMERS_PARTS, layout_of
from openblip.checkpoints.names.clip import TRANSFORMERS, openai_layout
from openblip.checkpoints.registry import find_model
from openblip.nn import blip
from openblip.nn.bert import BertConfig
from openblip.nn.clip import ClipNetwork
from openblip.nn.resnet_clip import ClipResNetConfig
from openblip.nn.vit import VitConfig
from tests.pairs.clip import plain_resnet, randomize
from tests.pairs.gaps import difference

DEPTH = 2
BLIPS = {
    "blip_caption/base_coco": BlipForConditionalGeneration,
    "blip_caption/large_coco": BlipForConditionalGeneration,
    "blip_vqa/vqav2": BlipForQuestionAnswering,
    "blip_image_text_matching/base": BlipForImageTextRetrieval,
    "blip_image_text_matching/large": BlipForImageTextRetrieval,
    "blip_retrieval/coco": BlipForImageTextRetrieval,
}
CLIPS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")
SEP = 102
NEW_TOKENS = 6


@dataclass(frozen=True)
class Measured:
    """One difference; of ids, the number of texts or rankings that differ, of `count`."""

    name: str
    value: float
    count: int | None = None


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, divided by the largest value if that is above 1."""
    return difference(ours, theirs) / max(1.0, float(theirs.detach().abs().max()))


def blip_pair(name: str) -> tuple[blip.BlipNetwork, Any]:
    """Ours and theirs of an official model's sizes, with the same random weights."""
    entry = find_model(name)
    assert entry is not None
    full = entry.config()
    config = replace(full, **{part: few(getattr(full, part)) for part in ("vision", "encoder", "decoder")})
    torch.manual_seed(3)
    ours = blip.BlipNetwork(config).eval()
    spread(ours)
    text = config.encoder or config.decoder
    theirs = BLIPS[name](their_config(config, text)).eval()
    own = {name: tensor for name, tensor in ours.state_dict().items() if name != "temperature"}  # theirs has none
    state = layout_of(config, TRANSFORMERS_PARTS).to_theirs(own)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in key or "decoder.cls" in key for key in missing), missing
    return ours, theirs


def few(config: Any) -> Any:
    return None if config is None else replace(config, depth=DEPTH)


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Weights so large that what is said depends on what is seen, at any width."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            words = "words" in name or "positions" in name
            parameter.normal_(std=0.5 if words else 1.2 * parameter[0].numel() ** -0.5)
        elif name.endswith("norm.weight") or "norm" in name.rpartition(".")[0].rpartition(".")[2]:
            parameter.normal_(1.0, 0.2)
        elif parameter.ndim:
            parameter.normal_(std=0.2)


def their_config(config: blip.BlipConfig, text: BertConfig) -> BlipConfig:
    return BlipConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": config.vision.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "intermediate_size": text.ffn_width,
            "max_position_embeddings": text.max_positions,
            "layer_norm_eps": text.layer_norm_eps,
            "bos_token_id": config.decode_id,
            "sep_token_id": SEP,
            "eos_token_id": SEP,
            "pad_token_id": 0,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        vision_config={
            "hidden_size": config.vision.width,
            "image_size": config.vision.image_size,
            "patch_size": config.vision.patch_size,
            "num_hidden_layers": config.vision.depth,
            "num_attention_heads": config.vision.num_heads,
            "intermediate_size": config.vision.mlp_width,
            "layer_norm_eps": config.vision.layer_norm_eps,
        },
        image_text_hidden_size=config.shared_width or 256,
    )


def inputs(side: int, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, ids of texts of different lengths that begin with [CLS] and end with [SEP], and their mask."""
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, side, side, generator=chance)
    ids = torch.randint(1000, 30_000, (count, 9), generator=chance)
    lengths = 9 - torch.arange(count) % 4
    mask = torch.arange(9) < lengths[:, None]
    ids[:, 0] = 101
    ids[torch.arange(count), lengths - 1] = SEP
    return pixels, ids.masked_fill(~mask, 0), mask


def blip_gaps(name: str) -> Iterator[Measured]:
    """Ours and theirs of one name of `BLIPS`."""
    ours, theirs = blip_pair(name)
    with torch.no_grad():
        if ours.config.answers:
            yield from _answers(ours, theirs)
        elif ours.config.decoder is not None:
            yield from _captions(ours, theirs)
        else:
            yield from _matches(ours, theirs)


def _captions(ours: blip.BlipNetwork, theirs: Any) -> Iterator[Measured]:
    pixels, ids, mask = inputs(ours.config.vision.image_size)
    ids[:, 0] = ours.config.decode_id
    features = ours.image_features(pixels)
    found = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    yield Measured("features", relative(features, found.image_embeds))
    hidden = ours.decoder.decode(ours.decoder.embed(ids), mask, ours.decoder.remember(features))
    yield Measured("logits", relative(ours.decoder.logits(hidden)[mask], found.logits[mask]))
    prompt = torch.cat(
        [ids[:, :3], torch.full((2, 1), SEP)], dim=1
    )  # theirs cuts the last id, which it takes for [SEP]
    said = theirs.generate(pixel_values=pixels, input_ids=prompt, max_new_tokens=NEW_TOKENS, num_beams=1)
    mine = [greedy(ours, row[None], one[:3]) for row, one in zip(features, ids, strict=True)]
    yield Measured("greedy ids", sum(a != trimmed(b[3:]) for a, b in zip(mine, said.tolist(), strict=True)), 2)


def _answers(ours: blip.BlipNetwork, theirs: Any) -> Iterator[Measured]:
    pixels, ids, _ = inputs(ours.config.vision.image_size)
    ids[1, -1] = ids[1, -2]  # of one length: theirs reads the padding of questions
    ids[:, 0], mask = ours.config.encode_id, torch.ones_like(ids)
    features = ours.image_features(pixels)
    their_features = theirs.vision_model(pixels)[0]
    yield Measured("features", relative(features, their_features))
    states = theirs.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=their_features)[0]
    yield Measured("question states", relative(ours.read_together(ids, mask, features), states))
    said = theirs.generate(pixel_values=pixels, input_ids=ids.clone(), max_new_tokens=NEW_TOKENS, num_beams=1)
    mine = [greedy(ours, row[None], one) for row, one in zip(features, ids, strict=True)]
    yield Measured("greedy ids", sum(a != trimmed(b[1:]) for a, b in zip(mine, said.tolist(), strict=True)), 2)


def _matches(ours: blip.BlipNetwork, theirs: Any) -> Iterator[Measured]:
    pixels, ids, mask = inputs(ours.config.vision.image_size, 4)
    features = ours.image_features(pixels)
    grounded = ours.begin_with_encode(ids)
    given = {"attention_mask": mask.long(), "pixel_values": pixels}
    both = theirs(input_ids=grounded, **given).itm_score
    yield Measured("ITM logits", relative(ours.itm_logits(ids, mask, features), both))
    cosines = theirs(input_ids=ids, use_itm_head=False, **given).itm_score
    mine = ours.project_images(features[:, 0]) @ ours.project_texts(ours.encoder(ids, mask)[:, 0]).T
    yield Measured("ITC cosines", difference(mine, cosines))
    # Every image with every text, ordered by cosine and match logit, as LAVIS ranks the best by cosine.
    rows = theirs.vision_model(pixels)[0].repeat_interleave(4, dim=0)
    states = theirs.text_encoder(
        grounded.repeat(4, 1), attention_mask=mask.long().repeat(4, 1), encoder_hidden_states=rows
    )[0]
    scores = cosines + theirs.itm_head(states[:, 0])[:, 1].view(4, 4)
    odds = ours.itm_logits(ids.repeat(4, 1), mask.repeat(4, 1), features)[:, 1].view(4, 4)
    orders = [
        (a.argsort(descending=True), b.argsort(descending=True))
        for a, b in ((mine + odds, scores), ((mine + odds).T, scores.T))
    ]
    yield Measured("rankings", sum(int((a != b).any(dim=1).sum()) for a, b in orders), 8)


def greedy(ours: blip.BlipNetwork, features: Tensor, prompt: Tensor) -> list[int]:
    """New ids behind a prompt or question about an image, chosen one by one by whole passes."""
    model = blip.BlipLanguageModel(ours)
    memory = model.remember(features)
    found: list[int] = []
    while len(found) < NEW_TOKENS and SEP not in found:
        labels = torch.tensor([[*found, 0]])
        hidden = model.hidden_before(model.embed(prompt)[None], None, labels, memory)
        found.append(int(ours.decoder.logits(hidden)[0, -1].argmax()))
    return trimmed(found)


def trimmed(ids: list[int]) -> list[int]:
    ends = [place for place, index in enumerate(ids) if index in (SEP, 0)]
    return ids[: ends[0]] if ends else ids


def clip_gaps(size: str) -> Iterator[Measured]:
    """Ours and transformers' CLIP of one of `CLIPS`."""
    full = clip_config(size)  # type: ignore[arg-type]
    assert isinstance(full.vision, VitConfig)
    config = replace(full, vision=few(full.vision), text=few(full.text))
    ours = ClipNetwork(config).eval()
    randomize(ours)
    layers = {"num_hidden_layers": DEPTH, "hidden_act": "quick_gelu"}
    theirs = CLIPModel(
        CLIPConfig(
            text_config={
                **layers,
                "vocab_size": full.text.vocab_size,
                "hidden_size": full.text.width,
                "intermediate_size": full.text.mlp_width,
                "num_attention_heads": full.text.num_heads,
                "max_position_embeddings": 77,
                "bos_token_id": full.text.vocab_size - 2,
                "eos_token_id": full.text.vocab_size - 1,
            },
            vision_config={
                **layers,
                "hidden_size": full.vision.width,
                "intermediate_size": full.vision.mlp_width,
                "num_attention_heads": full.vision.num_heads,
                "image_size": full.vision.image_size,
                "patch_size": full.vision.patch_size,
            },
            projection_dim=full.shared_width,
        )
    ).eval()
    theirs.load_state_dict(TRANSFORMERS.to_theirs(ours.state_dict()))
    pixels, ids, mask = clip_inputs(full.vision.image_size, full.text.vocab_size)
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
        images, texts = ours.embed_images(pixels), ours.embed_texts(ids, mask)
        yield Measured("image vectors", difference(F.normalize(images, dim=-1), found.image_embeds))
        yield Measured("text vectors", difference(F.normalize(texts, dim=-1), found.text_embeds))
        yield Measured("logits", relative(ours.contrast(images, texts), found.logits_per_image))


def clip_inputs(side: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, ids of texts of 77, 9 and 3 tokens that end with the largest id, and their mask."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(1, words - 2, (3, 77), generator=chance)
    mask = torch.arange(77) < torch.tensor([77, 9, 3])[:, None]
    ids[:, 0] = words - 2
    ids[torch.arange(3), mask.sum(dim=1) - 1] = words - 1
    return torch.randn(2, 3, side, side, generator=chance), ids.masked_fill(~mask, 0), mask


def resnet_gaps() -> Iterator[Measured]:
    """CLIP's ResNet at RN50's size, and its text side against open_clip where that is installed."""
    config = clip_config("RN50")
    assert isinstance(config.vision, ClipResNetConfig)
    config = replace(config, text=few(config.text))
    ours = ClipNetwork(config).eval()
    randomize(ours)
    pixels, ids, mask = clip_inputs(config.vision.image_size, config.text.vocab_size)
    state = openai_layout(config).to_theirs(ours.state_dict())
    with torch.no_grad():
        images = F.normalize(ours.embed_images(pixels), dim=-1)
        own = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
        plain = F.normalize(plain_resnet(own, config.vision, pixels), dim=-1)
        yield Measured("image vectors, plain PyTorch", difference(images, plain))
        theirs = open_clip_resnet(state)
        if theirs is not None:
            yield Measured("image vectors", difference(images, F.normalize(theirs.encode_image(pixels), dim=-1)))
            texts = F.normalize(ours.embed_texts(ids, mask), dim=-1)
            yield Measured("text vectors", difference(texts, F.normalize(theirs.encode_text(ids), dim=-1)))


def open_clip_resnet(state: dict[str, Tensor]) -> Any:
    """open_clip's RN50 with these weights; None where the package is not installed (it needs torchvision)."""
    from importlib import import_module

    try:
        open_clip: Any = import_module("open_clip")
    except ImportError:
        return None
    sizes = open_clip.get_model_config("RN50-quickgelu")
    sizes["text_cfg"]["layers"] = DEPTH
    model = open_clip.CLIP(**sizes).eval()
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, strict=False)
    return model
