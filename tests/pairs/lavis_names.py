"""States of our networks from LAVIS' checkpoints, a component at a time, through the tables that loading uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from openblip.checkpoints.names import opt, qformer, t5, vit
from openblip.checkpoints.names.engine import Layout, Part
from openblip.checkpoints.names.lavis import lavis_layout
from openblip.nn.blip2 import Blip2Config
from openblip.nn.t5 import T5Config


def blip2_from_lavis(state: Mapping[str, Tensor], config: Blip2Config) -> dict[str, Tensor]:
    """A `Blip2Network` state from what LAVIS saves of `blip2` (stage 1), `blip2_opt` or `blip2_t5` (stage 2).

    Args:
        state: the file's "model" entry. Official files lack what was frozen: join the image encoder's tensors
            under `visual_encoder.` and the language model's under `opt_model.` or `t5_model.` first.
        config: sizes; says whether there is a text side (stage 1) and a language model (stage 2).

    Raises:
        CheckpointError: a part is missing altogether, or names that the network has no place for, which are
            listed. Single missing tensors show when the state is loaded.
    """
    return lavis_layout(config).to_ours(state)


def vit_from_lavis(state: Mapping[str, Tensor], depth: int | None = None) -> dict[str, Tensor]:
    """A `VisionTransformer` state from a LAVIS file: EVA's ViT-g or CLIP's ViT-L, told apart by their names.

    Args:
        state: a whole checkpoint, or the encoder's tensors with or without `visual_encoder.` or `visual.`.
        depth: blocks to keep from the front; None for all. CLIP's own files have one more than BLIP-2 uses.

    Raises:
        CheckpointError: a name that belongs to neither layout, or no tensors at all.
    """
    table = vit.CLIP if any(vit.CLIP.bare(name) in vit.LAVIS_CLIP for name in state) else vit.EVA
    own = {name: tensor for name, tensor in state.items() if name.startswith(vit.FRONTS[1:])}
    return Layout(table.what, [Part("", "", replace(table, depth=depth))]).to_ours(own or state)


def t5_from_lavis(state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """A `T5` state from a LAVIS checkpoint, of which other parts are passed over.

    Official files hold no more of it than the token embeddings, as it was frozen: join a FLAN-T5 folder's
    tensors under `t5_model.` first.

    Raises:
        CheckpointError: no T5 in it, a name that belongs to none, or tables that differ where `config` ties them.
    """
    return Layout(t5.TABLE.what, [Part("", "", t5.table_of(config))]).to_ours(_under(t5.LAVIS_PREFIX, state))


def t5_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `T5` state under the names of a T5 folder, each tensor once.

    Raises:
        CheckpointError: a name that is none of ours.
    """
    return Layout(t5.TABLE.what, [Part("", "", t5.TABLE)]).to_theirs(state)


def qformer_from_lavis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `QFormer` state from a LAVIS checkpoint, of which other parts are passed over.

    Stage-2 files have no text side: no word embeddings, no feed-forward networks for text, no head.

    Raises:
        CheckpointError: no Q-Former in it, a name that belongs to none, or an untied output table.
    """
    part = Part("", "", qformer.LAVIS)
    own = {name: tensor for name, tensor in state.items() if part.claims(name)}
    return Layout(qformer.LAVIS.what, [part]).to_ours(own)


def decoder_from_lavis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Opt` state from a LAVIS checkpoint, of which other parts are passed over.

    Official files lack it, as it was frozen: its tensors come from an OPT folder.

    Raises:
        CheckpointError: no OPT in it, a name that belongs to none, or an untied output table.
    """
    return Layout(opt.TABLE.what, [Part("", "", opt.TABLE)]).to_ours(_under(opt.LAVIS_PREFIX, state))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without this beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
