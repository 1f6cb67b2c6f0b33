"""BERT weights (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) as the start of a Q-Former.

As BLIP-2 does: the text side and self-attention come from BERT, the queries' feed-forward network starts
as a copy of the text's, cross-attention and queries start fresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

LAYER_NAMES = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.out": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "text_ffn.fc1": "intermediate.dense",
    "text_ffn.fc2": "output.dense",
    "text_ffn.norm": "output.LayerNorm",
    "query_ffn.fc1": "intermediate.dense",
    "query_ffn.fc2": "output.dense",
    "query_ffn.norm": "output.LayerNorm",
}


def qformer_from_bert(
    state: Mapping[str, Tensor], layers: Sequence[int], kept_words: Sequence[int]
) -> dict[str, Tensor]:
    """Part of a `QFormer` state: what BERT can supply.

    Args:
        state: a BERT encoder's tensors (`embeddings.*`, `encoder.layer.N.*`).
        layers: which BERT layer becomes each Q-Former layer.
        kept_words: the BERT id of each word in a trimmed vocabulary; -1 for a new word, which starts at
            the mean of all.
    """
    words = state["embeddings.word_embeddings.weight"]
    mean = words.mean(dim=0)
    tensors = {
        "words.weight": _stack([words[index] if index >= 0 else mean for index in kept_words]),
        # BERT adds its token-type table's first row to every text of one segment.
        "positions.weight": state["embeddings.position_embeddings.weight"]
        + state["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": state["embeddings.LayerNorm.weight"],
        "norm.bias": state["embeddings.LayerNorm.bias"],
    }
    for index, source in enumerate(layers):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                tensors[f"layers.{index}.{ours}.{kind}"] = state[f"encoder.layer.{source}.{theirs}.{kind}"]
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _stack(rows: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(rows)
