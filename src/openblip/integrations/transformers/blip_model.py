"""transformers' `BlipModel`: features of images and texts by projections of its own, behind poolers.

No official weights are of this class; what LAVIS calls features is in `openblip.integrations.lavis`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.families import Family
from openblip.checkpoints.json_files import to_json
from openblip.checkpoints.names.blip import ENCODER, PROJECTION, TRANSFORMERS_VISION
from openblip.checkpoints.names.engine import Layout, NameTable, Part
from openblip.checkpoints.openblip.file_names import CONFIG_FILE
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.tensors.fill import fill
from openblip.checkpoints.transformers.blip import MATCH, blip_config
from openblip.checkpoints.transformers.write import write_weights
from openblip.errors import CheckpointError, OptionError
from openblip.integrations.transformers.blip_pretrained import BlipVision, text_batch
from openblip.integrations.transformers.config import ModelConfig, config_content
from openblip.integrations.transformers.folders import open_folder
from openblip.integrations.transformers.names import Naming
from openblip.integrations.transformers.options import CallOptions, LoadOptions, tuple_wanted
from openblip.integrations.transformers.outputs import BlipModelOutput, FeatureOutput
from openblip.integrations.transformers.training import Trainable
from openblip.nn.bert import Bert
from openblip.nn.blip import BlipConfig
from openblip.nn.quant.swap import prepare_layers, quantized_layers
from openblip.training.init.reinit import draw

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

KIND = "BlipModel"
PROJECTION_WIDTH = 512
"""Of the shared space, where config.json does not say."""
FIRST_SCALE = 2.6592
"""Logarithm of what cosines are multiplied by in a new model, as in transformers: about 1 / 0.07."""
BARE = NameTable("projection", {"weight": "weight"})
LAYOUT = Layout(
    KIND,
    [
        Part("vision.", "vision_model.", TRANSFORMERS_VISION),
        Part("pooler.", "text_model.pooler.dense.", PROJECTION),
        Part("encoder.", "text_model.", ENCODER),
        Part("image_projection.", "visual_projection.", BARE),
        Part("text_projection.", "text_projection.", BARE),
        Part("log_scale", "logit_scale", NameTable("scale", {"": ""})),
    ],
)
ROOTS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
BELOW = {
    "vision_model.encoder.": "vision.",
    "text_model.": "encoder.",
    "text_pooler": "pooler",
    "visual_projection": "image_projection",
    "logit_scale": "log_scale",
}


def _sizes(content: Mapping[str, Any], path: Path) -> BlipConfig:
    """The parts that a config.json describes. Raises CheckpointError when it describes none."""
    config = blip_config({**content, "architectures": [MATCH]}, path)
    return replace(config, itm=False, shared_width=content.get("projection_dim", PROJECTION_WIDTH))


class FeatureNetwork(nn.Module):
    """The parts of a BlipModel."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        text, shared = config.encoder, config.shared_width
        assert text is not None and shared is not None  # as `BlipModel.from_pretrained` makes the config
        self.config = config
        self.vision = config.vision.build()
        self.encoder = Bert(text)
        self.pooler = nn.Linear(text.width, text.width)
        self.image_projection = nn.Linear(config.vision.width, shared, bias=False)
        self.text_projection = nn.Linear(text.width, shared, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE))


class BlipModel(Trainable):
    """transformers' BlipModel over OpenBLIP's layers.

    Attributes:
        config: config.json.
        name_or_path: what it was loaded by.
    """

    main_input_name = "input_ids"

    def __init__(self, network: FeatureNetwork, content: dict[str, Any], name: str) -> None:
        super().__init__()
        self.network = (network,)  # in a tuple its layers have one name each
        self.content = content
        self.config = ModelConfig(content)
        self.name_or_path = name
        self.vision_model = BlipVision(network.vision)
        self.text_model = network.encoder
        self.text_pooler = network.pooler
        self.visual_projection, self.text_projection = network.image_projection, network.text_projection
        self.logit_scale = network.log_scale
        self.translate(Naming(BELOW, LAYOUT.sources, ROOTS))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Unpack[LoadOptions]) -> Self:
        """The model of a folder of transformers, in evaluation mode.

        Raises:
            CheckpointError: no such model, one of another class, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: a keyword of transformers that means nothing here.
        """
        name = pretrained_model_name_or_path
        opened = open_folder(name, options)
        folder, content = opened.folder, opened.content
        kinds = content.get("architectures") or [KIND]
        if not opened.is_theirs or content.get("model_type") != "blip" or KIND not in kinds:
            raise CheckpointError(f"{name} is no {KIND} of transformers: load it by its own class")
        path = folder / CONFIG_FILE
        config = _sizes(content, path)
        weights = WeightFolder(folder, ROOTS)
        try:
            plan = LAYOUT.plan(weights.shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        network = empty_network(config, path, family=Family(KIND, BlipConfig, FeatureNetwork))
        network = fill(network, weights, plan, folder, opened.options, {})
        prepare_layers(network)
        return cls(network, content, str(name)).eval()

    @classmethod
    def from_config(cls, config: object) -> Self:
        """A new model of the sizes of a config, with random weights; see `BlipForConditionalGeneration.from_config`."""
        content = {**config_content(config), "architectures": [KIND]}
        network = FeatureNetwork(_sizes(content, Path("config")))
        for part in (network.encoder, network.pooler, network.image_projection, network.text_projection):
            part.apply(draw)
        return cls(network, content, KIND)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.text_model.words
        return table

    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **others: Unpack[CallOptions]
    ) -> Any:
        """Patches [B, N, image width]; `pooler_output` [B, shared width] are vectors of the shared space."""
        as_tuple = tuple_wanted("get_image_features", others)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding)
        projected = self.visual_projection(vision.pooler_output)
        found = FeatureOutput(last_hidden_state=vision.last_hidden_state, pooler_output=projected)
        return found.to_tuple() if as_tuple else found

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Unpack[CallOptions]
    ) -> Any:
        """Words [B, L, width]; `pooler_output` [B, shared width] are vectors of the shared space."""
        as_tuple = tuple_wanted("get_text_features", others)
        text = self._read(input_ids, attention_mask, None)
        projected = self.text_projection(text.pooler_output)
        found = FeatureOutput(last_hidden_state=text.last_hidden_state, pooler_output=projected)
        return found.to_tuple() if as_tuple else found

    def get_multimodal_features(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Vectors [B, shared width] of texts that were read with their images."""
        features = self.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        vectors: Tensor = self.text_projection(self._read(input_ids, attention_mask, features).pooler_output)
        return vectors

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **others: Unpack[CallOptions],
    ) -> Any:
        """Images against texts: a `BlipModelOutput`, or with return_dict=False a tuple."""
        as_tuple = tuple_wanted("the model", others)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding)
        text = self._read(input_ids, attention_mask, None)
        images = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)
        texts = F.normalize(self.text_projection(text.pooler_output), dim=-1)
        logits = texts @ images.t() * self.logit_scale.exp()
        loss: Tensor | None = None
        if return_loss:
            if len(images) != len(texts):
                raise OptionError(f"{len(images)} images came with {len(texts)} texts: a loss takes them in pairs")
            right = torch.arange(len(logits), device=logits.device)
            loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.t(), right)) / 2
        found = BlipModelOutput(
            loss=loss,
            logits_per_image=logits.t(),
            logits_per_text=logits,
            text_embeds=texts,
            image_embeds=images,
            text_model_output=text,
            vision_model_output=vision,
        )
        return found.to_tuple() if as_tuple else found

    def _read(self, ids: Tensor, mask: Tensor | None, features: Tensor | None) -> FeatureOutput:
        encoder = self.text_model
        ids, mask = text_batch(ids, mask, encoder.config.max_positions, self.device)
        memories = () if features is None else (encoder.remember(features),)
        hidden: Tensor = encoder(ids, mask, *memories)
        return FeatureOutput(last_hidden_state=hidden, pooler_output=self.text_pooler(hidden[:, 0]).tanh())

    def _write(self, folder: Path, shard_bytes: int, state: Mapping[str, Tensor] | None) -> None:
        (network,) = self.network
        if quantized_layers(network):
            raise CheckpointError("quantized weights cannot be read by transformers: load the model in floating point")
        own = LAYOUT.to_theirs(network.state_dict() if state is None else state)
        write_weights(folder, {CONFIG_FILE: to_json({**self.content, "architectures": [KIND]})}, own, shard_bytes)
