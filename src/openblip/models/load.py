"""A name to a model on its device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openblip.checkpoints import DEFAULT_MODEL
from openblip.checkpoints.loading import find_tokenizer, load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.devices import Placement, choose_placement, tell_substitution
from openblip.errors import given_path
from openblip.images.encoded_image import DEFAULT_BYTES, ImageCache
from openblip.models.families import composer_of
from openblip.models.model import Model
from openblip.nn.memory import reuse_freed
from openblip.nn.quant.swap import prepare_layers

if TYPE_CHECKING:
    import torch

    from openblip.checkpoints.lora.files import Adapter
    from openblip.checkpoints.model_parts import ModelParts


def load(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device | None = "auto",
    dtype: str | torch.dtype | None = "auto",
    adapter: str | Path | None = None,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    image_cache: int = DEFAULT_BYTES,
) -> Model:
    """Load a model by name, or from a folder that OpenBLIP or transformers wrote.

    Args:
        name: "mini", which is in the package; an official model (`openblip models`), whose files are downloaded
            if they are not on this machine; a repository of the hub; or a folder. One that holds an adapter alone
            stands for the model that it was trained on, with the adapter.
        device: "cpu", "cuda", "cuda:1", "mps", or a `torch.device`; "auto" (or None) is CUDA if there is a GPU.
        dtype: "float32", "bfloat16" ("bf16") or "float16" ("fp16"), or a `torch.dtype`; "int8" quantizes large matrices
            as they are read, for a quarter of the memory and several times the speed on a CPU; "int4" quantizes those
            of the language model further; "auto" (or None) is what the device computes fast.
        adapter: a folder, or a repository of the hub, with low-rank adapters (LoRA) as peft writes them; they are
            merged into the weights before these are cast or quantized.
        checkpoint: a `.pth` that LAVIS saved, read instead of the official one of a LAVIS name.
        tokenizer: a model's folder or name, whose vocabulary is read for a folder of transformers that has none, as
            the checkpoints of its Trainer.
        image_cache: bytes of memory, on the device, for encoded images, those used last, so that captions, answers and
            scores of one of them again need not encode it; 0 switches it off.

    Raises:
        CheckpointError: no such model, its files are broken, or the adapter does not fit it.
        DownloadError: its files cannot be had.
        OptionError: an unknown device or type, or a negative number of bytes.
    """
    placement = choose_placement(device, dtype)
    options = ReadOptions(
        placement.dtype,
        placement.device,
        placement.bits,
        adapter=None if adapter is None else _find_adapter(adapter),
        checkpoint=None if checkpoint is None else given_path("the checkpoint", checkpoint),
        tokenizer=None if tokenizer is None else find_tokenizer(tokenizer),
    )
    return model_of(load_parts(name, options), placement, image_cache)


def _find_adapter(adapter: str | Path) -> Adapter:
    from openblip.checkpoints.lora.fit import find_adapter  # few loads need it, and it takes time to import

    return find_adapter(adapter)


def model_of(parts: ModelParts, placement: Placement, image_cache: int = DEFAULT_BYTES) -> Model:
    """What users hold, of a network and what belongs to it; the network is put on its device, for inference."""
    tell_substitution(placement.device, placement.dtype)
    network = parts.network.to(device=placement.device, dtype=placement.dtype).eval()
    network.requires_grad_(False)
    prepare_layers(network)
    if placement.device.type == "cpu":
        reuse_freed()
    return Model(parts, placement, composer_of(parts.family)(parts, placement, ImageCache(image_cache)))
