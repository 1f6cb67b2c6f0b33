"""BLIP weights in LAVIS' files, in those of the original BLIP repository, and in folders of transformers.

A model is a list of parts: how names begin there, how they begin here, and the table of what stands behind. N stands
for a layer's index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from openblip.checkpoints.names.engine import drop_tied, first_few, look_up
from openblip.checkpoints.names.vit import LAVIS_EVA, TRANSFORMERS_BLIP2
from openblip.errors import CheckpointError

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
BERT = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.LayerNorm": "norm",
    **{f"encoder.layer.N.{theirs}": f"layers.N.{ours}" for theirs, ours in LAYER.items()},
}
HEAD = {"transform.dense": "dense", "transform.LayerNorm": "norm", "bias": "bias"}

TEXT_PARTS = (
    ("text_encoder.", "encoder.", BERT),
    ("text_decoder.bert.", "decoder.", BERT),
    ("text_decoder.cls.predictions.", "decoder.head.", HEAD),
    ("", "", {"vision_proj": "image_projection", "text_proj": "text_projection", "itm_head": "itm_head"}),
)
LAVIS_PARTS = (
    ("visual_encoder.", "vision.", {**LAVIS_EVA, "norm": "final_norm"}),
    *TEXT_PARTS,
    ("", "", {"cls_head.0": "class_head.fc1", "cls_head.2": "class_head.fc2", "temp": "temperature"}),
)
TRANSFORMERS_PARTS = (
    ("vision_model.", "vision.", {**TRANSFORMERS_BLIP2, "post_layernorm": "final_norm"}),
    *TEXT_PARTS,
)

Parts = tuple[tuple[str, str, Mapping[str, str]], ...]


def table(parts: Parts) -> dict[str, str]:
    """Their names of modules to ours."""
    return {theirs + name: ours + part[name] for theirs, ours, part in parts for name in part}


LAVIS = table(LAVIS_PARTS)
TRANSFORMERS = table(TRANSFORMERS_PARTS)

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Second names of one tensor, which files have besides."""

POSITION_NUMBERS = "embeddings.position_ids"
"""A buffer that only counts 0, 1, 2, ..."""
MOMENTUM = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj|cls_head)_m\.")
QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue")
"""Of training by contrast; the original BLIP has the last where LAVIS has the one before."""


def is_training_state(name: str) -> bool:
    """Whether a tensor is of training alone: a momentum copy, a queue, or a buffer that counts."""
    return name.endswith(POSITION_NUMBERS) or name in QUEUES or MOMENTUM.match(name) is not None


def blip_from_lavis(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A `BlipNetwork` state from what LAVIS or the original BLIP saved.

    Files of several tasks hold heads that a model of one of them has no use for: they are left out, like momentum
    copies and queues. The temperature of a file without one is LAVIS' first.

    Args:
        wanted: names and shapes of the network's tensors.

    Raises:
        CheckpointError: a name that belongs to no BLIP, or tables that differ where BLIP ties them.
    """
    own = {name: tensor for name, tensor in state.items() if not is_training_state(name)}
    drop_tied(own, TIED)
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in own.items():
        ours = look_up(name, LAVIS)
        if ours is None:
            unknown.append(name)
        elif ours in wanted:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(f"no weights of a BLIP: {first_few(unknown)}")
    return renamed


def to_theirs(state: Mapping[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """A `BlipNetwork` state under other names, tied tensors under both of theirs.

    Raises:
        CheckpointError: a tensor that they have no place for.
    """
    inverse = {ours: theirs for theirs, ours in table(parts).items()}
    found = {}
    for name, tensor in state.items():
        theirs = look_up(name, inverse)
        if theirs is None:
            raise CheckpointError(f"they have no place for {name}: this BLIP is not of their layouts")
        found[theirs] = tensor
    return found | {second: found[first] for second, first in TIED.items() if first in found}
