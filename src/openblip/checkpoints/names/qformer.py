"""Q-Former weights as LAVIS and transformers name them, renamed to those of `openblip.nn.qformer`.

Each table maps a module or a single parameter; N stands for the layer's index.
"""

from __future__ import annotations

from openblip.checkpoints.names.engine import NameTable

# LAVIS calls the projections of an attention `attention.self`, transformers `attention.attention`.
LAYER_NAMES = {
    "attention.{self}.query": "self_attention.query",
    "attention.{self}.key": "self_attention.key",
    "attention.{self}.value": "self_attention.value",
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.{self}.query": "cross_attention.query",
    "crossattention.{self}.key": "cross_attention.key",
    "crossattention.{self}.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate_query.dense": "query_ffn.fc1",
    "output_query.dense": "query_ffn.fc2",
    "output_query.LayerNorm": "query_ffn.norm",
    "intermediate.dense": "text_ffn.fc1",
    "output.dense": "text_ffn.fc2",
    "output.LayerNorm": "text_ffn.norm",
}

LAVIS_QFORMER = {
    "query_tokens": "queries",
    "Qformer.bert.embeddings.LayerNorm": "norm",
    "Qformer.bert.embeddings.word_embeddings": "words",
    "Qformer.bert.embeddings.position_embeddings": "positions",
    **{
        f"Qformer.bert.encoder.layer.N.{theirs.format(self='self')}": f"layers.N.{ours}"
        for theirs, ours in LAYER_NAMES.items()
    },
    "Qformer.cls.predictions.transform.dense": "head.dense",
    "Qformer.cls.predictions.transform.LayerNorm": "head.norm",
    "Qformer.cls.predictions.bias": "head.bias",
}

TRANSFORMERS_QFORMER = {
    "query_tokens": "queries",
    "qformer.layernorm": "norm",
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    **{
        f"qformer.encoder.layer.N.{theirs.format(self='attention')}": f"layers.N.{ours}"
        for theirs, ours in LAYER_NAMES.items()
    },
}

LAVIS_ROOTS = ("query_tokens", "Qformer.")

LAVIS_TIED = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
"""Second names of one tensor, which files saved as a whole carry."""

POSITION_NUMBERS = "Qformer.bert.embeddings.position_ids"
"""A buffer that only counts 0, 1, 2, ..."""

LAVIS = NameTable("Q-Former", LAVIS_QFORMER, second_names=LAVIS_TIED, unused=(POSITION_NUMBERS,), roots=LAVIS_ROOTS)
