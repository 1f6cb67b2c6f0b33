"""A CLIP in a folder of open_clip (https://github.com/mlfoundations/open_clip) -> a model.

Such a folder has open_clip_config.json and weights under OpenAI's names; it may have a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.checkpoints.clip_models import FAMILY
from openblip.checkpoints.json_files import build, read_json
from openblip.checkpoints.lavis.clip import ClipParts, read_clip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.clip import OPENAI_ROOTS, openai_layout
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.registry import OPEN_CLIP_FILE
from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.checkpoints.transformers.config import section_of
from openblip.checkpoints.transformers.tokenizers import has_vocabulary, no_vocabulary, read_clip_words
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.clip import ClipConfig, ClipTextConfig
from openblip.nn.resnet_clip import ClipResNetConfig
from openblip.nn.vit import VitConfig
from openblip.text import ClipText

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The first that is there is read, as open_clip does."""

MODEL = {"embed_dim": 512, "quick_gelu": False}
VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
"""What is read, and what open_clip takes where nothing is said."""
FIXED = {
    "model_cfg": {},
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable"},
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear"},
    "preprocess_cfg": {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"},
}
"""What has one value here; of anything else that would change a result, only nothing."""
WITHOUT_EFFECT = (
    *("vision_cfg", "text_cfg", "init_logit_scale", "cast_dtype", "output_dict", "patch_dropout", "output_tokens"),
    *("attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id", "size", "fill_color", "mean", "std"),
    *("timm_pool", "timm_proj", "timm_drop", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
)
"""On what is computed here: of training, or of what has to be absent."""


def load_open_clip(folder: Path, options: ReadOptions) -> ClipParts:
    """Read such a folder, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, broken or does not fit, or the model is not built as CLIP is.
    """
    path = folder / OPEN_CLIP_FILE
    content = read_json(path)
    config = read_open_clip_config(section_of(content, "model_cfg", path), path)
    words = folder if options.tokenizer is None else options.tokenizer
    text: ClipText | None = None
    if has_vocabulary(words):
        text = read_clip_words(words, config.text_positions, config.text_vocab_size)
    elif options.needs_tokenizer:
        raise CheckpointError(f"{no_vocabulary(words, 'write')}, as openai/clip-vit-base-patch32 for most CLIPs")
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder} has no weights: get {' or '.join(WEIGHTS)}, too")
    weights = Peeled(open_weights(found[0]), OPENAI_ROOTS)
    network = read_clip(config, weights, openai_layout(config), found[0], options)
    pictures = section_of(content, "preprocess_cfg", path)
    _refuse_others("preprocess_cfg", pictures, {}, path)
    values = {name: pictures[name] for name in ("mean", "std") if pictures.get(name) is not None}
    transform = build(ImageTransform, {"image_size": config.vision.image_size, "crop": True, **values}, path)
    return ModelParts(folder.resolve().name, network, transform, text, None, family=FAMILY)


def read_open_clip_config(content: Mapping[str, Any], path: Path) -> ClipConfig:
    """The network that the model_cfg of the file at `path` describes.

    Raises:
        CheckpointError: it describes none, or one that is not built as CLIP is.
    """
    model = _section("model_cfg", content, MODEL, path)
    vision = _section("vision_cfg", section_of(content, "vision_cfg", path), VISION, path)
    text = _section("text_cfg", section_of(content, "text_cfg", path), TEXT, path)
    activation = "quick_gelu" if model["quick_gelu"] else "gelu"
    try:
        return _build(model["embed_dim"], vision, text, activation, path)
    except TypeError as error:
        raise CheckpointError(f"{path} has sizes that are no numbers ({error}): get it again") from error


def _build(shared: int, vision: Mapping[str, Any], text: Mapping[str, Any], activation: str, path: Path) -> ClipConfig:
    width = text["width"]
    words = {
        "vocab_size": text["vocab_size"],
        "width": width,
        "depth": text["layers"],
        "num_heads": text["heads"],
        "mlp_width": int(width * text["mlp_ratio"]),
        "max_positions": text["context_length"],
        "activation": activation,
    }
    width = vision["width"]
    images: VitConfig | ClipResNetConfig
    if isinstance(vision["layers"], list):
        sizes = {"image_size": vision["image_size"], "width": width, "depths": vision["layers"]}
        heads = {"num_heads": width * 32 // vision["head_width"], "output_width": shared}
        images = build(ClipResNetConfig, {**sizes, **heads}, path)
    else:
        patches = {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": width,
            "depth": vision["layers"],
            "num_heads": width // vision["head_width"],
            "mlp_width": int(width * vision["mlp_ratio"]),
            "layer_norm_eps": 1e-5,
            "activation": activation,
        }
        images = build(VitConfig, {**patches, "pre_norm": True, "patch_bias": False, "final_norm": True}, path)
    return build(
        ClipConfig, {"vision": images, "text": build(ClipTextConfig, words, path), "shared_width": shared}, path
    )


def _section(name: str, content: Mapping[str, Any], usual: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _refuse_others(name, content, usual, path)
    found = {key: content[key] for key in usual if content.get(key) is not None}
    return {**usual, **found}


def _refuse_others(name: str, content: Mapping[str, Any], read: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError for settings that would change results and are not read."""
    fixed = FIXED[name]
    for key, value in content.items():
        if key in read or key in WITHOUT_EFFECT or not value or value == fixed.get(key):
            continue
        raise CheckpointError(
            f"{path}: {key} of {name} is {value!r}: only CLIPs that are built as OpenAI's can be read, with a ViT or "
            "ResNet and a text transformer of their own"
        )
