"""What transformers' BLIP-2 models have in common: how they are loaded, and how an image is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openblip.checkpoints.names.transformers import NOT_THEIRS, sources
from openblip.checkpoints.tensors.wrappers import BLIP2_ROOTS
from openblip.checkpoints.transformers.config import WordIds
from openblip.checkpoints.transformers.tokenizers import Task
from openblip.checkpoints.transformers.write import save_transformers
from openblip.errors import OptionError
from openblip.integrations.transformers.config import ModelConfig
from openblip.integrations.transformers.folders import LoadedModel, find_folder, read_model
from openblip.integrations.transformers.names import QUERIES, Naming
from openblip.integrations.transformers.options import (
    GenerationSettings,
    LoadOptions,
    check_tensor,
    chosen_device,
    refuse_load,
    wanted_bits,
)
from openblip.integrations.transformers.outputs import FeatureOutput
from openblip.integrations.transformers.training import Trainable
from openblip.nn.blip2 import Blip2Network
from openblip.nn.vit import VisionTransformer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


def blip2_naming(language: str = "", second_names: Mapping[str, str] | None = None) -> Naming:
    """Args: what the network calls the language model; see `Naming`."""
    parts = {
        "vision_model.encoder.": "vision.",
        "vision_model.post_layernorm": "vision_norm",
        "vision_projection": "image_projection",
        "language_projection": "prompt_projection",
        "language_model.": f"{language}.",
        QUERIES: "qformer.queries",
    }
    return Naming(parts, sources, BLIP2_ROOTS, NOT_THEIRS, second_names or {})


def check_pixels(pixel_values: Tensor, encoder: nn.Module, interpolate: bool) -> None:
    """Raises OptionError for no pixels [B, 3, H, W], and for another size than the encoder's without `interpolate`."""
    check_tensor("pixel_values", pixel_values, 4)
    if isinstance(encoder, VisionTransformer) and not interpolate:
        side = encoder.config.image_size
        if pixel_values.shape[-2:] != (side, side):
            height, width = pixel_values.shape[-2:]
            raise OptionError(
                f"the pixels are {height} x {width}, the model reads {side} x {side}: "
                "make them with its processor, or give interpolate_pos_encoding=True"
            )


class VisionModel(nn.Module):
    """The image encoder and the norm behind it."""

    def __init__(self, network: Blip2Network) -> None:
        super().__init__()
        self.encoder = network.vision
        self.post_layernorm = network.vision_norm

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> FeatureOutput:
        """Pixels [B, 3, H, W] to normalized patches, the class token's first.

        Raises:
            OptionError: another size than the model was trained on, without `interpolate_pos_encoding`.
        """
        weight = self.post_layernorm.weight
        check_pixels(pixel_values, self.encoder, interpolate_pos_encoding)
        patches: Tensor = self.post_layernorm(self.encoder(pixel_values.to(weight.device, weight.dtype)))
        # Normalized once more, as there.
        return FeatureOutput(last_hidden_state=patches, pooler_output=self.post_layernorm(patches[:, 0]))


class Pretrained(Trainable):
    """A model of transformers' name over OpenBLIP's network.

    Its layers go by transformers' names, so that scripts freeze what they mean to and peft finds its targets.

    Attributes:
        name_or_path: what it was loaded by.
        generation_config: of a model that writes, what `generate` does where a call says nothing; else None.
        config: config.json, and what it leaves to defaults and scripts ask for.
    """

    task: Task = "write"
    word_ids: WordIds | None = None

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        network = loaded.parts.network
        self.parts = loaded.parts
        self.config = ModelConfig(loaded.config)
        self.name_or_path = loaded.parts.name
        self.generation_config: GenerationSettings | None = None
        self.vision_model = VisionModel(network)
        # Before the Q-Former, which has it, too: transformers counts the queries apart.
        self.query_tokens = network.qformer.queries
        self.qformer = network.qformer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Unpack[LoadOptions]) -> Self:
        """The model of a name or folder, in evaluation mode; missing files of a repository are downloaded.

        In float16 the Q-Former stays in float32, as there.

        Raises:
            CheckpointError: no such model, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: a keyword of transformers that means nothing here.
        """
        refuse_load(options)
        device = chosen_device(options.get("device_map"))
        dtype = options.get("dtype") or options.get("torch_dtype") or "auto"
        folder = find_folder(
            pretrained_model_name_or_path,
            options.get("revision"),
            options.get("cache_dir"),
            options.get("local_files_only", False),
            options.get("subfolder", ""),
            options.get("token") or options.get("use_auth_token"),
        )
        model = cls(read_model(folder, dtype, device, wanted_bits(options))).eval()
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @property
    def device(self) -> torch.device:
        return self.query_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.post_layernorm.weight.dtype

    def _write(self, folder: Path, shard_bytes: int, state: Mapping[str, Tensor] | None) -> None:
        save_transformers(self.parts, folder, self.task, shard_bytes, state, self.word_ids)

    def _query(self, pixel_values: Tensor, interpolate: bool) -> tuple[FeatureOutput, FeatureOutput]:
        """What the image encoder and the queries see: [B, N, image width] and [B, Q, width]."""
        vision: FeatureOutput = self.vision_model(pixel_values, interpolate)
        # In float32 also where the rest is in float16.
        queries = self.qformer.image(vision.last_hidden_state.to(self.query_tokens.dtype))
        return vision, FeatureOutput(last_hidden_state=queries, pooler_output=queries[:, 0])
