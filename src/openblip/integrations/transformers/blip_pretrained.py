"""What transformers' BLIP models have in common: how they are loaded and saved, and how images and texts are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import ROOTS, TRANSFORMERS_PARTS, layout_of
from openblip.checkpoints.transformers.blip import BlipWords, blip_config, class_of, describe, save_blip_folder
from openblip.errors import CheckpointError, OptionError
from openblip.images.transform import ImageTransform
from openblip.integrations.transformers.config import ModelConfig, config_content
from openblip.integrations.transformers.folders import read_family
from openblip.integrations.transformers.names import Naming
from openblip.integrations.transformers.options import (
    GenerationSettings,
    LoadOptions,
    check_tensor,
)
from openblip.integrations.transformers.outputs import (
    FeatureOutput,
)
from openblip.integrations.transformers.pretrained import check_pixels
from openblip.integrations.transformers.training import Trainable
from openblip.nn.bert import Bert
from openblip.nn.blip import BlipNetwork
from openblip.nn.vit import VisionTransformer
from openblip.text import PromptTemplates
from openblip.training.init.reinit import draw

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

BELOW = {
    "vision_model.encoder.": "vision.",
    "text_encoder.": "encoder.",
    "text_decoder.": "decoder.",
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
}
"""How names below a model begin, and those of the network."""
CONFIG_FILE = Path("config")
"""What errors call a config that lies in no file."""
SEPARATOR_ID = 102
"""What transformers' config calls the end of a text where a folder does not say."""


class BlipVision(nn.Module):
    """The image encoder, whose last norm is its own."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def post_layernorm(self) -> nn.Module:
        norm = self.encoder.final_norm
        assert norm is not None  # as of every BLIP that transformers has a class for
        return norm

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> FeatureOutput:
        """Pixels [B, 3, H, W] to patches, the class token's first.

        Raises:
            OptionError: another size than the model was trained on, without `interpolate_pos_encoding`.
        """
        check_pixels(pixel_values, self.encoder, interpolate_pos_encoding)
        weight = self.encoder.patch_embed.weight
        patches: Tensor = self.encoder(pixel_values.to(weight.device, weight.dtype))
        # Normalized once more, as there.
        return FeatureOutput(last_hidden_state=patches, pooler_output=self.post_layernorm(patches[:, 0]))


class BlipPretrained(Trainable):
    """A BLIP of transformers' name over OpenBLIP's network.

    Attributes:
        name_or_path: what it was loaded by.
        config: config.json, and what it leaves to defaults.
        generation_config: of a model that writes, what `generate` does where a call says nothing; else None.
    """

    def __init__(self, parts: ModelParts[BlipNetwork], content: Mapping[str, Any] | None = None) -> None:
        """`content` is the config.json of a folder of transformers."""
        super().__init__()
        network = parts.network
        kind = class_of(network.config, parts.name)
        if kind != type(self).__name__:
            raise CheckpointError(f"{parts.name} is no {type(self).__name__}: load it with {kind}")
        # As transformers 5 scores beams: by the length of what was generated.
        network.config = replace(network.config, prompt_counts=False)
        text: Mapping[str, Any] = (content or {}).get("text_config") or {}
        stop, pad = text.get("sep_token_id"), text.get("pad_token_id")
        words = parts.tokenizer if parts.matching is None else parts.matching.tokenizer
        if words is not None:
            stop = words.token_id("[SEP]") if stop is None else stop
            pad = words.pad_id if pad is None else pad
        self.words = BlipWords(
            SEPARATOR_ID if stop is None else stop, pad or 0, float(text.get("label_smoothing") or 0.0)
        )
        self.parts = parts
        # A Seq2SeqTrainer pads what it generates with what stands here, where transformers' BLIP says nothing.
        usual = {"pad_token_id": self.words.pad, **describe(parts, self.words)}
        self.config = ModelConfig(_merged(usual, content or {}))
        self.name_or_path = parts.name
        self.generation_config: GenerationSettings | None = None
        self.vision_model = BlipVision(network.vision)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Unpack[LoadOptions]) -> Self:
        """The model of a name or folder, in evaluation mode; missing files of a repository are downloaded.

        Raises:
            CheckpointError: no such model, one of another class, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: a keyword of transformers that means nothing here.
        """
        parts, content = read_family(pretrained_model_name_or_path, options, "blip", "BLIP")
        model = cls(parts, content).eval()
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def from_config(cls, config: object) -> Self:
        """A new model of the sizes of a config, with random weights, to be trained.

        Args:
            config: a BlipConfig of transformers, what config.json says as a dictionary, or a folder's or file's path.

        Raises:
            CheckpointError: it describes no such model.
            OptionError: it is no config.
        """
        content = {**config_content(config), "architectures": [cls.__name__]}
        sizes = blip_config(content, CONFIG_FILE)
        network = BlipNetwork(sizes)
        for name in ("encoder", "decoder"):
            if hasattr(network, name):
                network.get_submodule(name).apply(draw)
        size, prompts = sizes.vision.image_size, PromptTemplates(**PROMPTS)
        defaults = read_defaults(GENERATION, CONFIG_FILE)
        return cls(assemble(cls.__name__, network, ImageTransform(size), None, prompts, defaults), content)

    def name_layers(self) -> None:
        """Give layers transformers' names, once they are in place."""
        layout = layout_of(self.parts.network.config, TRANSFORMERS_PARTS)
        seconds = {
            part.theirs + second: part.theirs + first
            for part in layout.parts
            for second, first in part.table.second_names.items()
        }
        self.translate(Naming(BELOW, layout.sources, ROOTS, ("temperature",), seconds))

    @property
    def device(self) -> torch.device:
        return self.vision_model.encoder.patch_embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_model.encoder.patch_embed.weight.dtype

    def _write(self, folder: Path, shard_bytes: int, state: Mapping[str, Tensor] | None) -> None:
        save_blip_folder(self.parts, folder, None, shard_bytes, state, self.words)

    def _embed(self, bert: Bert, ids: Tensor) -> Tensor:
        """Ids [B, L] to what BERT reads, of which padding learns nothing, as in transformers."""
        embeds = bert.embed(ids)
        if not embeds.requires_grad:
            return embeds
        return torch.where((ids == self.words.pad)[:, :, None], embeds.detach(), embeds)

    def _texts(
        self, ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None, longest: int
    ) -> tuple[Tensor, Tensor | None]:
        return text_batch(ids, mask, longest, self.device)


def text_batch(
    ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None, longest: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Ids [B, L] and their mask on the device, None when there is no padding.

    Raises:
        OptionError: no such tensors, or texts of more than `longest` tokens.
    """
    if isinstance(ids, list):
        ids = torch.tensor(ids)
    check_tensor("input_ids", ids, 2)
    assert isinstance(ids, Tensor)
    if ids.shape[1] > longest:
        raise OptionError(
            f"a text of {ids.shape[1]} tokens is longer than the model's {longest} positions: "
            "give the processor truncation=True and max_length"
        )
    if mask is not None:
        check_tensor("attention_mask", mask, 2)
        if mask.shape != ids.shape:
            shapes = f"attention_mask is {list(mask.shape)}, input_ids are {list(ids.shape)}"
            raise OptionError(f"{shapes}: give a mask of the ids' shape")
        mask = None if bool(mask.bool().all()) else mask.to(device).bool()
    return ids.to(device), mask


def _merged(usual: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, with what it leaves to defaults, groups within groups."""
    groups = {
        name: _merged(value, content.get(name) or {}) for name, value in usual.items() if isinstance(value, Mapping)
    }
    told = {name: value for name, value in content.items() if value is not None or name not in usual}
    return {**usual, **told, **groups}
