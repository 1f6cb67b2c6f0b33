"""BLIP weights in LAVIS' files, in those of the original BLIP repository, and in folders of transformers.

A model is a list of parts, of which each task has some. N stands for a layer's index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from openblip.checkpoints.names.engine import Layout, NameTable, Part
from openblip.checkpoints.names.vit import LAVIS_EVA, TRANSFORMERS_BLIP2
from openblip.nn.blip import BlipConfig

LAYER = {
    "attention.self.query": "self_attention.query",
    "attention.self.key": "self_attention.key",
    "attention.self.value": "self_attention.value",
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "crossattention.self0.query": "cross_attention.first.query",
    "crossattention.self0.key": "cross_attention.first.key",
    "crossattention.self0.value": "cross_attention.first.value",
    "crossattention.output.dense0": "cross_attention.first.out",
    "crossattention.self1.query": "cross_attention.second.query",
    "crossattention.self1.key": "cross_attention.second.key",
    "crossattention.self1.value": "cross_attention.second.value",
    "crossattention.output.dense1": "cross_attention.second.out",
    "crossattention.output.merge_layer": "cross_attention.merge",
    "intermediate.dense": "ffn.fc1",
    "output.dense": "ffn.fc2",
    "output.LayerNorm": "ffn.norm",
}
MODULES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.LayerNorm": "norm",
    **{f"encoder.layer.N.{theirs}": f"layers.N.{ours}" for theirs, ours in LAYER.items()},
}
POSITION_NUMBERS = "embeddings.position_ids"
"""A buffer that only counts 0, 1, 2, ..."""
ENCODER = NameTable("text encoder", MODULES, unused=(POSITION_NUMBERS,))
DECODER = NameTable(
    "text decoder",
    {
        **{f"bert.{theirs}": ours for theirs, ours in MODULES.items()},
        "cls.predictions.transform.dense": "head.dense",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.bias": "head.bias",
    },
    second_names={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=(f"bert.{POSITION_NUMBERS}",),
)
OWN_DECODER = NameTable(
    "text decoder",
    {theirs: ours for theirs, ours in DECODER.modules.items() if "self_attention" in ours or ours.startswith("head.")},
    second_names={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    unused=DECODER.unused,
)
"""Of a decoder that shares the rest with the encoder."""
PLAIN_BERT = NameTable(
    "BERT",
    {
        **{theirs: ours for theirs, ours in MODULES.items() if "crossattention" not in theirs},
        **{theirs: ours for theirs, ours in DECODER.modules.items() if ours.startswith("head.")},
    },
    second_names={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=(POSITION_NUMBERS, "embeddings.token_type_embeddings", "pooler.dense", "cls.seq_relationship"),
)
"""bert-base-uncased, without the prefix "bert.": what BLIP's text encoder and decoder begin with."""
SHARED = {
    **{f"text_decoder.bert.{theirs}": f"text_encoder.{theirs}" for theirs in MODULES if ".attention." not in theirs},
    "text_decoder.cls.predictions.decoder.weight": "text_encoder.embeddings.word_embeddings.weight",
}
"""What the two share: the decoder's names, and the encoder's."""
LAVIS_VISION = NameTable("image encoder", {**LAVIS_EVA, "norm": "final_norm"})
TRANSFORMERS_VISION = NameTable("image encoder", {**TRANSFORMERS_BLIP2, "post_layernorm": "final_norm"})
CLASSES = NameTable("head for classes", {"0": "fc1", "2": "fc2"})
PROJECTION = NameTable("projection", {"weight": "weight", "bias": "bias"})
ITM = NameTable("head for matching", {"weight": "weight", "bias": "bias"})

TEXT_PARTS = (
    Part("encoder.", "text_encoder.", ENCODER),
    Part("decoder.", "text_decoder.", DECODER),
    Part("image_projection.", "vision_proj.", PROJECTION),
    Part("text_projection.", "text_proj.", PROJECTION),
    Part("itm_head.", "itm_head.", ITM),
)
LAVIS_PARTS = (
    Part("vision.", "visual_encoder.", LAVIS_VISION),
    *TEXT_PARTS,
    Part("class_head.", "cls_head.", CLASSES),
    Part("temperature", "temp", NameTable("temperature", {"": ""})),
)
TRANSFORMERS_PARTS = (Part("vision.", "vision_model.", TRANSFORMERS_VISION), *TEXT_PARTS)
ROOTS = tuple(dict.fromkeys(part.theirs for part in (*LAVIS_PARTS, *TRANSFORMERS_PARTS)))
"""How names begin in all of these files."""

CLASS_BIAS = "cls_head.2.bias"
"""Of the last layer of the head for classes in LAVIS' files: one number a class."""
MOMENTUM = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj|cls_head)_m\.")
QUEUE_NAMES = {
    "image_queue": "images",
    "text_queue": "texts",
    "idx_queue": "ids",
    "queue_ptr": "place",
    "ptr_queue": "place",
}
"""Of training by contrast; the original BLIP has the last where LAVIS has the one before."""


def is_training_state(name: str) -> bool:
    """Whether a tensor is of training alone: a momentum copy or a queue."""
    return name in QUEUE_NAMES or MOMENTUM.match(name) is not None


def momentum_tensors(
    names: Iterable[str], layout: Layout, parameters: Iterable[str], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """What a file of LAVIS or the original BLIP has of momentum copies, by our names, and of queues.

    Args:
        parameters: our names of what is copied.
        read: gives the tensor of a name of the file.

    Returns:
        the copies; "images" and "texts" [Q, shared width], "ids" [Q] and "place" [1], where the file has them.
    """
    names = list(names)
    copies = {MOMENTUM.sub(r"\1.", name): name for name in names if MOMENTUM.match(name)}
    found: dict[str, Tensor] = {}
    for name in parameters:
        rows = layout.sources(name)
        if rows and all(row.name in copies for row in rows):
            pieces = [row.of(read(copies[row.name])) for row in rows]
            found[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    for theirs, ours in QUEUE_NAMES.items():
        if theirs in names:
            found[ours] = read(theirs)
    found |= {name: found[name].T for name in ("images", "texts") if name in found}
    return found | ({"ids": found["ids"][0]} if "ids" in found else {})


def layout_of(config: BlipConfig, parts: tuple[Part, ...]) -> Layout:
    """The names of what one model consists of, the temperature aside, which files of some tasks lack."""
    has = {
        "encoder.": config.encoder is not None,
        "decoder.": config.decoder is not None,
        "image_projection.": config.shared_width is not None,
        "text_projection.": config.shared_width is not None,
        "itm_head.": config.itm,
        "class_head.": config.num_classes is not None,
        "temperature": False,
    }
    own = [part for part in parts if has.get(part.ours, True)]
    if config.shares_text:
        own = [replace(part, table=OWN_DECODER) if part.ours == "decoder." else part for part in own]
    return Layout("this BLIP", own, SHARED if config.shares_text else None)


def own_names(names: Iterable[str], layout: Layout, parts: tuple[Part, ...]) -> list[str]:
    """Names without momentum copies, queues, and parts that belong to other tasks than the layout's."""
    own = {part.ours for part in layout.parts}
    others = [part for part in parts if part.ours not in own]
    return [name for name in names if not is_training_state(name) and not any(part.claims(name) for part in others)]


def second_names(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> dict[str, Tensor]:
    """Tied tensors of a state under their names, by the second names that LAVIS' files have besides."""
    tied = {part.theirs + second: part.theirs + first for part in parts for second, first in _tied(part)}
    return {second: state[first] for second, first in tied.items() if first in state}


def _tied(part: Part) -> Iterable[tuple[str, str]]:
    return part.table.second_names.items()
