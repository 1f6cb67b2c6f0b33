"""BLIP as LAVIS recorded it: weights under LAVIS' names, inputs and outputs in files that are not in the repository."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.names.blip import LAVIS_PARTS, layout_of, own_names
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.vit import VitConfig

VARIABLE = "OPENBLIP_LAVIS_ZOO"
"""The folder of the recordings."""


def recordings() -> Path | None:
    path = os.environ.get(VARIABLE)
    return None if path is None else Path(path)


def need_recordings() -> Path:
    """The folder of the recordings; without one the test is skipped."""
    found = recordings()
    if found is None:
        pytest.skip(f"{VARIABLE} names no folder of recordings")
    return found


@dataclass(frozen=True)
class Recording:
    """One file: what LAVIS' code computed from small random weights."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    vocabulary: list[str]

    def network(self, **settings: Any) -> BlipNetwork:
        """Ours of these weights, in evaluation mode; `settings` are of its config."""
        config = BlipConfig(
            vision_config(self.config["vision"]), **settings, decode_id=self.decode_id, encode_id=self.encode_id
        )
        network = BlipNetwork(config)
        layout = layout_of(config, LAVIS_PARTS)
        names = own_names(self.weights, layout, LAVIS_PARTS)
        found = layout.to_ours({name: self.weights[name] for name in names})
        if config.shared_width is not None:
            found["temperature"] = self.weights.get("temp", torch.tensor(0.07))
        network.load_state_dict(found)
        return network.eval()

    def bert(self, **settings: Any) -> BertConfig:
        return bert_config(self.config["text"], **settings)

    @property
    def decode_id(self) -> int:
        return int(self.config["bos_DEC"])

    @property
    def encode_id(self) -> int:
        return int(self.config["ENC"])

    def ids(self, texts: Sequence[str], first: int = 2, cut: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids [B, L] of texts, from `first` to [SEP], and their mask: BERT's rules with the recordings' vocabulary."""
        rows = []
        for text in texts:
            row = [2, *(piece for word in re.findall(r"\w+|[^\w\s]", text.lower()) for piece in self.pieces(word))]
            rows.append([*(row if cut is None else row[: cut - 1]), 3])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = ids != 0
        ids[:, 0] = first
        return ids, mask

    def pieces(self, word: str) -> list[int]:
        known = {piece: index for index, piece in enumerate(self.vocabulary)}
        found: list[int] = []
        rest = word
        while rest:
            marks = "##" if found else ""
            length = next((n for n in range(len(rest), 0, -1) if marks + rest[:n] in known), 0)
            if not length:
                return [1]
            found.append(known[marks + rest[:length]])
            rest = rest[length:]
        return found


def load(folder: Path, name: str) -> Recording:
    found = torch.load(folder / f"{name}.pth", weights_only=True)
    words = (folder / "vocab_blip.txt").read_text(encoding="utf-8").split("\n")
    return Recording(found["model"], found["config"], found["inputs"], found["outputs"], [w for w in words if w])


def vision_config(sizes: dict[str, Any]) -> VitConfig:
    return VitConfig(
        image_size=sizes["img_size"],
        patch_size=sizes["patch_size"],
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        mlp_width=int(sizes["embed_dim"] * sizes["mlp_ratio"]),
        layer_norm_eps=sizes["eps"],
        final_norm=True,
    )


def bert_config(sizes: dict[str, Any], **settings: Any) -> BertConfig:
    usual = {
        "vocab_size": sizes["vocab_size"],
        "width": sizes["hidden_size"],
        "depth": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "ffn_width": sizes["intermediate_size"],
        "image_width": sizes["encoder_width"],
        "max_positions": sizes["max_position_embeddings"],
        "layer_norm_eps": sizes["layer_norm_eps"],
        "dropout": 0.0,
    }
    return BertConfig(**(usual | settings))
