"""One BLIP of an official size with random weights: transformers', and ours in float32 and int8."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from openblip.checkpoints.blip_models import GENERATION, PROMPT, PROMPTS, Size, Task, blip_config
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import TRANSFORMERS_PARTS, layout_of
from openblip.devices import choose_placement
from openblip.images.transform import ImageTransform
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.blip import BlipNetwork
from openblip.nn.quant.swap import quantize
from openblip.text import PromptTemplates

CLASSES: Mapping[Task, Any] = {
    "caption": transformers.BlipForConditionalGeneration,
    "answer": transformers.BlipForQuestionAnswering,
    "match": transformers.BlipForImageTextRetrieval,
}
PAD, UNKNOWN, START, STOP, MASK, DECODE = 0, 100, 101, 102, 103, 30522


@dataclass(frozen=True)
class Models:
    """One BLIP three times: transformers', and ours in float32 and int8."""

    theirs: Any
    float32: Model
    int8: Model
    processor: Any
    vocabulary: list[str]
    places: Mapping[str, int]

    def pixels(self, image: Image.Image) -> Tensor:
        found: Tensor = self.processor(image, return_tensors="pt")["pixel_values"]
        return found

    def ids(self, text: str) -> list[int]:
        return [START, *(self.places[word] for word in text.replace("?", " ?").split()), STOP]

    def texts(self, rows: Tensor, tokens: int) -> list[str]:
        """The last tokens of each row as one text."""
        return ["".join(self.vocabulary[index] for index in row[-tokens:]) for row in rows.tolist()]

    def settle(self, work: Callable[[Model], object], times: int) -> None:
        """Do it until int8 layers are packed, as in a program that does it often."""
        for _ in range(times):
            self.int8.image_cache.clear()
            work(self.int8)


def vocabulary() -> list[str]:
    """As many words as BERT has, its special tokens at their places."""
    words = [f"unused{number}" for number in range(DECODE)]
    for place, word in {PAD: "[PAD]", UNKNOWN: "[UNK]", START: "[CLS]", STOP: "[SEP]", MASK: "[MASK]"}.items():
        words[place] = word
    words[1000 : 1000 + len(PROMPT.split())] = PROMPT.split()
    words[1029] = "?"
    return [*words, "[DEC]", "[ENC]"]


def make(size: Size, task: Task, side: int) -> Models:
    """Random weights of an official size, for images of `side` pixels."""
    torch.manual_seed(0)
    config = blip_config(size, task, side)
    theirs = CLASSES[task](transformers_config(size, side)).eval()
    with torch.device("meta"):
        network = BlipNetwork(config)
    state = layout_of(config, TRANSFORMERS_PARTS).to_ours(theirs.state_dict())
    if "temperature" in network.state_dict():
        state["temperature"] = torch.tensor(0.07)
    network.load_state_dict(state, assign=True)
    words = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "vocab.txt").write_text("\n".join(words[:DECODE]) + "\n", encoding="utf-8")
        defaults = read_defaults(GENERATION, place)
        made = assemble(task, network, ImageTransform(side), place, PromptTemplates(**PROMPTS), defaults)
    small = copy.deepcopy(network)
    quantize(small, 8)
    processor: Any = transformers.BlipImageProcessor(size={"height": side, "width": side})
    return Models(
        theirs,
        placed(made, network, "float32"),
        placed(made, small, "int8"),
        processor,
        words,
        {word: place for place, word in enumerate(words)},
    )


def placed(parts: ModelParts[Any], network: BlipNetwork, dtype: str) -> Model:
    return model_of(replace(parts, network=network), choose_placement("cpu", dtype))


def transformers_config(size: Size, side: int) -> Any:
    vision = blip_config(size, "caption", side).vision
    return transformers.BlipConfig(
        vision_config={
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.mlp_width,
            "image_size": side,
            "layer_norm_eps": vision.layer_norm_eps,
            "initializer_range": 0.02,  # transformers' own, 1e-10, would make all images the same
        },
        text_config={
            "encoder_hidden_size": vision.width,
            "num_attention_heads": 12,
            "bos_token_id": DECODE,
            "sep_token_id": STOP,
            "eos_token_id": STOP,
            "pad_token_id": PAD,
        },
        image_text_hidden_size=256,
    )


@cache
def photo(number: int) -> Image.Image:
    return Image.effect_noise((640, 480), 60 + number).convert("RGB")
