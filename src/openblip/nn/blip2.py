"""BLIP-2: a frozen image encoder, a Q-Former, a frozen language model (https://arxiv.org/abs/2301.12597)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.bert import ImageMemory
from openblip.nn.config_checks import check_settings
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig
from openblip.nn.hf_language_model import ExternalConfig, ExternalLanguageModel
from openblip.nn.language_model import LanguageModel
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.qformer import QFormer, QFormerConfig
from openblip.nn.t5 import T5, T5Config
from openblip.nn.vit import VisionTransformer, VitConfig

SAMPLED_WORDS = 4096
"""Words that tell how large a language model's embeddings are."""


VisionConfig: TypeAlias = VitConfig | EfficientNetConfig
OwnLanguageConfig: TypeAlias = OptConfig | T5Config
OwnLanguageModel: TypeAlias = Opt | T5


@dataclass(frozen=True)
class Blip2Config:
    """What one BLIP-2 consists of.

    Attributes:
        vision: the image encoder.
        qformer: with `vocab_size` 0 the model has no text side and can neither match nor embed.
        language: the language model; None for a stage-1 model, which can neither caption nor answer. An external one
            is not built here.
        shared_width: width of the space that images and texts share (ITC).
        vision_norm_eps: of the LayerNorm between encoder and Q-Former (LAVIS: 1e-5, unlike its ViT).
    """

    vision: VisionConfig
    qformer: QFormerConfig
    language: OwnLanguageConfig | ExternalConfig | None = None
    shared_width: int = 256
    vision_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def own_language(self) -> OwnLanguageConfig | None:
        """The language model whose weights belong to the network; None where it is external, or there is none."""
        return None if self.language is None or self.language.is_external else cast(OwnLanguageConfig, self.language)

    @property
    def text_vocab_size(self) -> int:
        """Ids that the text side reads; 0 without one."""
        return self.qformer.vocab_size

    @property
    def text_positions(self) -> int:
        """Tokens of the longest text that the text side reads."""
        return self.qformer.max_positions


class Blip2Network(nn.Module):
    """The parts and how tensors pass between them; objectives and generation are built on top.

    Attributes:
        language_model: the one there is, as generation takes it. One of ours is a module under its config's `prefix`;
            an external one is no part of the network. A stage-1 network lacks the attribute.

    Args:
        external: the language model that the config says is external.
    """

    vision: VisionTransformer | EfficientNet

    def __init__(self, config: Blip2Config, external: ExternalLanguageModel | None = None) -> None:
        super().__init__()
        expected = config.language if config.language is not None and config.language.is_external else None
        if expected != (None if external is None else external.config):
            raise ValueError("the language model that was handed in is not the one that the config says is external")
        self.config = config
        self.external = external
        self.vision = config.vision.build()
        if self.vision.width != config.qformer.image_width:
            raise ValueError(
                f"the image encoder gives {self.vision.width} channels, the Q-Former reads {config.qformer.image_width}"
            )
        self.vision_norm = nn.LayerNorm(self.vision.width, eps=config.vision_norm_eps)
        self.qformer = QFormer(config.qformer)
        width = config.qformer.width
        if config.qformer.vocab_size:
            self.image_projection = nn.Linear(width, config.shared_width)
            self.text_projection = nn.Linear(width, config.shared_width)
            self.itm_head = nn.Linear(width, 2)
            self.temperature = nn.Parameter(torch.tensor(0.07))
        if config.language is not None:
            self.prompt_projection = nn.Linear(width, config.language.token_width)
        if config.own_language is not None:
            self.add_module(config.own_language.prefix, config.own_language.build())

    @property
    def language_model(self) -> LanguageModel:
        return self.own_language_model if self.external is None else self.external

    @property
    def own_language_model(self) -> Opt | T5:
        """The one whose weights belong to the network."""
        own = self.config.own_language
        if own is None:
            raise AttributeError("this BLIP-2 has no language model of its own")
        return cast("Opt | T5", self.get_submodule(own.prefix))

    @torch.no_grad()
    def start_prompt_projection(self) -> None:
        """Start the projection into the language model's space at the size of that model's own word embeddings.

        Visual tokens many times larger than any word would drown what stands beside them.
        """
        model = self.language_model
        step = max(1, model.config.vocab_size // SAMPLED_WORDS)
        words = torch.arange(0, model.config.vocab_size, step, device=self.prompt_projection.weight.device)
        size = model.embed(words).float().square().mean().sqrt()
        self.prompt_projection.weight.normal_(std=float(size) / self.config.qformer.width**0.5)
        self.prompt_projection.bias.zero_()

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to normalized patches [B, N, image width]."""
        return self.normalize(self.vision(pixels))

    def normalize(self, patches: Tensor) -> Tensor:
        """Raw patches of the frozen encoder [B, N, image width], computed or cached, to features."""
        features: Tensor = self.vision_norm(patches)
        return features

    def project_queries(self, queries: Tensor) -> Tensor:
        """Query outputs [B, Q, D] to unit vectors [B, Q, shared width] (ITC)."""
        return F.normalize(self.image_projection(queries), dim=-1)

    def project_text(self, hidden: Tensor) -> Tensor:
        """Text outputs [B, L, D] to one unit vector a text [B, shared width], taken at [CLS]."""
        return F.normalize(self.text_projection(hidden[:, 0]), dim=-1)

    def itm_logits(self, ids: Tensor, mask: Tensor | None, image: Tensor | ImageMemory) -> Tensor:
        """Whether text and image belong together: [B, 2], the mean over the queries; index 1 is yes.

        There may be several texts for each image, as `QFormer.joint` takes them.
        """
        queries = self.qformer.joint(ids, mask, image)[:, : self.config.qformer.num_queries]
        logits: Tensor = self.itm_head(queries).mean(dim=1)
        return logits

    def visual_prompt(self, image: Tensor | ImageMemory) -> Tensor:
        """Image features [B, N, image width] to soft prompt tokens [B, Q, token width] of the language model."""
        prompt: Tensor = self.prompt_projection(self.qformer.image(image))
        return prompt


def itc_similarity(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosine of every image with every text, best query each: [I, Q, E] x [T, E] to [I, T]."""
    return torch.einsum("iqe,te->itq", image_embeds, text_embeds).amax(dim=-1)
