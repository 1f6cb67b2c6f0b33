"""BLIP-2 weights under LAVIS' names (https://github.com/salesforce/LAVIS), for our network."""

from __future__ import annotations

from dataclasses import replace

from openblip.checkpoints.names import qformer, vit
from openblip.checkpoints.names.engine import Layout, NameTable, Part
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config
from openblip.nn.vit import VitConfig

VISION_PREFIX = vit.LAVIS_PREFIX
NORM = {"ln_vision": "vision_norm"}
MATCHING = {
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
    "itm_head": "itm_head",
    "temp": "temperature",
}


def lavis_layout(config: Blip2Config) -> Layout:
    """The names of `blip2` (stage 1), `blip2_opt` and `blip2_t5` (stage 2), as a file saved whole has them.

    Raises:
        CheckpointError: LAVIS has no such image encoder or language model.
    """
    if not isinstance(config.vision, VitConfig):
        raise CheckpointError("LAVIS has BLIP-2 with EVA's or CLIP's ViT only: this model has another image encoder")
    if config.language is not None and config.language.is_external:
        raise CheckpointError("LAVIS has BLIP-2 with OPT or T5 only: this one has an external language model")
    encoder = vit.CLIP if config.vision.pre_norm else vit.EVA
    beside = NORM | (MATCHING if config.qformer.vocab_size else {})
    parts = [
        Part("vision.", VISION_PREFIX, replace(encoder, depth=config.vision.depth)),
        Part("qformer.", "", qformer.LAVIS),
    ]
    language = config.own_language
    if language is not None:
        files = LANGUAGES[language.kind]
        beside = beside | {files.lavis_projection: "prompt_projection"}
        parts.append(Part(f"{language.prefix}.", files.lavis_prefix, files.table(language)))
    table = NameTable("part of BLIP-2 between its models", beside, roots=tuple(f"{name}." for name in beside))
    return Layout("this BLIP-2 of LAVIS", [*parts, Part("", "", table)])
