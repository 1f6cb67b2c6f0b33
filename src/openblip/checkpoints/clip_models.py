"""Every CLIP that has a name: what it is made of and which files it comes in.

LAVIS' names ("clip/ViT-B-32") and OpenAI's ("ViT-B/32") mean the archives that OpenAI published; the hub's names
("openai/clip-vit-base-patch32") are the folders that transformers made of them. Sources: https://github.com/openai/CLIP,
https://github.com/salesforce/LAVIS (lavis/models/clip_models) and https://huggingface.co/openai.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from openblip.checkpoints.hub.sources import Repository, Source, WebFile
from openblip.checkpoints.model_entry import TEXT, VISION, ModelEntry

if TYPE_CHECKING:
    from openblip.nn.clip import ClipConfig

FAMILY = "clip"
LICENCE = "MIT"
ABILITIES = ("match", "embed", "classify")
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models/"
WORDS = "openai/clip-vit-base-patch32"
"""Where the vocabulary comes from, which OpenAI's archives have not."""
WORDS_BYTES = 3_500_000
WORD_ROWS, TEXT_POSITIONS = 49408, 77

Size = Literal["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "RN50"]
VIT: Mapping[Size, tuple[int, int, int, int]] = {
    "ViT-B-32": (224, 32, 768, 12),
    "ViT-B-16": (224, 16, 768, 12),
    "ViT-L-14": (224, 14, 1024, 24),
    "ViT-L-14-336": (336, 14, 1024, 24),
}
"""Sides of images and patches, width, depth."""
RESNET: Mapping[Size, tuple[int, int, tuple[int, ...]]] = {"RN50": (224, 64, (3, 4, 6, 3))}
TEXT_WIDTHS: Mapping[Size, int] = {"ViT-B-32": 512, "ViT-B-16": 512, "ViT-L-14": 768, "ViT-L-14-336": 768, "RN50": 512}
SHARED_WIDTHS: Mapping[Size, int] = {**TEXT_WIDTHS, "RN50": 1024}
PARAMS: Mapping[Size, tuple[int, int]] = {
    "ViT-B-32": (87_849_216, 63_428_097),
    "ViT-B-16": (86_192_640, 63_428_097),
    "ViT-L-14": (303_966_208, 123_650_305),
    "ViT-L-14-336": (304_293_888, 123_650_305),
    "RN50": (38_316_896, 63_690_241),
}
"""Of the image encoder and of the text side, each with its way into the shared space."""
MATRIX_PARAMS: Mapping[Size, tuple[int, int]] = {
    "ViT-B-32": (84_934_656, 37_748_736),
    "ViT-B-16": (84_934_656, 37_748_736),
    "ViT-L-14": (301_989_888, 84_934_656),
    "ViT-L-14-336": (301_989_888, 84_934_656),
    "RN50": (12_582_912, 37_748_736),
}
"""Of the two, weights that are quantized: matrices of layers; of the ResNet, whose convolutions are not, those of the
attention that pools."""
HASHES: Mapping[Size, str] = {
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
}
"""SHA-256 of OpenAI's archives, which is also the folder that each lies in."""
OPENAI_NAMES: Mapping[Size, str] = {
    "ViT-B-32": "ViT-B/32",
    "ViT-B-16": "ViT-B/16",
    "ViT-L-14": "ViT-L/14",
    "ViT-L-14-336": "ViT-L/14@336px",
    "RN50": "RN50",
}
HUB_NAMES: Mapping[Size, str] = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}


def clip_config(size: Size) -> ClipConfig:
    """The network of an official model."""
    from openblip.nn.clip import ClipConfig, ClipTextConfig
    from openblip.nn.resnet_clip import ClipResNetConfig
    from openblip.nn.vit import VitConfig

    width = TEXT_WIDTHS[size]
    text = ClipTextConfig(WORD_ROWS, width, 12, width // 64, 4 * width, TEXT_POSITIONS)
    shared = SHARED_WIDTHS[size]
    if size in RESNET:
        side, channels, depths = RESNET[size]
        return ClipConfig(ClipResNetConfig(side, channels, depths, channels // 2, shared), text, shared)
    side, patch, width, depth = VIT[size]
    vision = VitConfig(
        image_size=side,
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=width // 64,
        mlp_width=4 * width,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
        final_norm=True,
    )
    return ClipConfig(vision, text, shared)


def _entry(size: Size, names: tuple[str, ...], origin: Literal["lavis", "transformers"], files: Any) -> ModelEntry:
    params = dict(zip((VISION, TEXT), PARAMS[size], strict=True))
    vision, text = MATRIX_PARAMS[size]
    return ModelEntry(
        name=names[0],
        aliases=names[1:],
        family=FAMILY,
        summary=f"CLIP {OPENAI_NAMES[size]}, trained by OpenAI on 400 million images and texts of the web",
        origin=origin,
        abilities=ABILITIES,
        image_size=RESNET[size][0] if size in RESNET else VIT[size][0],
        params=params,
        int8_params=vision + text + WORD_ROWS * TEXT_WIDTHS[size],
        int4_params=text if size in RESNET else vision + text,
        licence=LICENCE,
        terms=LICENCE,
        files=files(params),
        build_config=partial(clip_config, size),
    )


def _openai(size: Size) -> ModelEntry:
    def files(params: Mapping[str, int]) -> tuple[Source, ...]:
        # float16, but for the word table
        nbytes = 2 * (sum(params.values()) + WORD_ROWS * TEXT_WIDTHS[size])
        name = "ViT-L-14-336px.pt" if size == "ViT-L-14-336" else f"{size}.pt"
        archive = WebFile(name, tuple(params), nbytes, f"{OPENAI_URL}{HASHES[size]}/", HASHES[size])
        return archive, Repository(WORDS, (), WORDS_BYTES)

    return _entry(size, (f"clip/{size}", f"clip_feature_extractor/{size}", OPENAI_NAMES[size]), "lavis", files)


def _hub(size: Size) -> ModelEntry:
    def files(params: Mapping[str, int]) -> tuple[Source, ...]:
        return (Repository(HUB_NAMES[size], tuple(params), 4 * sum(params.values())),)

    return _entry(size, (HUB_NAMES[size],), "transformers", files)


MODELS: tuple[ModelEntry, ...] = (*map(_openai, OPENAI_NAMES), *map(_hub, HUB_NAMES))
