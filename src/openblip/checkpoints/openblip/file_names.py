"""What the files of a model folder of ours are called."""

from __future__ import annotations

from collections.abc import Mapping

FORMAT = "openblip"
"""What config.json says of the folder."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MATCHING_FILE = "qformer_tokenizer.json"
DECODER_FILE = "decoder_tokenizer.json"


def word_files(config: Mapping[str, object]) -> list[str]:
    """The vocabularies that a folder with this config.json has: of the text side, of a language model of its own."""
    own = [MATCHING_FILE] if config.get("matching_tokens") is not None else []
    return [*own, DECODER_FILE] if config.get("decoder") is not None or config.get("t5") is not None else own
