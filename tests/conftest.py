"""A random model small enough to be built anew in every test run, and images to show it."""

from __future__ import annotations

import os
import string
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import nn

from openblip.checkpoints.model_parts import ANSWERS, CAPTIONS, GenerationDefaults, ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.tools.plan import free_memory
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.efficientnet import EfficientNetConfig
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.text import MatchingText, Tokenizer
from openblip.training.init.vocabulary import train_decoder_tokenizer, trim_wordpiece

if TYPE_CHECKING:
    from openblip.models.model import Model

# The models of these tests are tiny: more threads only wait for one another, for minutes on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The web servers of these tests are on this machine.
os.environ.setdefault("OPENBLIP_ALLOW_PRIVATE_ADDRESSES", "1")

# On a busy machine everything takes long.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

WORKER_MEMORY = 3 * 1024**3
"""Bytes that a process of `pytest -n auto` needs at most, with those that its tests start."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `pytest -n auto`: one for each core that this one may use, while there is memory for all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    (_, memory), *_ = free_memory()
    return cores if memory is None else max(1, min(cores, memory // WORKER_MEMORY))


SENTENCES = [
    "a dog runs on the beach",
    "two children play with a red ball",
    "Question: what color is the ball? Answer: red.\n",
    "Question: how many children are there? Answer: two.\n",
]


@pytest.fixture(scope="session")
def tiny_parts() -> ModelParts:
    """A whole model with random weights: EfficientNet at 64 px, Q-Former with text side, decoder."""
    words = train_decoder_tokenizer(SENTENCES, 320)
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    pieces = trim_wordpiece(["[UNK]", *letters, "dog", "ball", "beach", "the"], SENTENCES, 100)
    config = Blip2Config(
        vision=EfficientNetConfig(image_size=64, width_scale=0.25, depth_scale=0.5, place_width=8),
        qformer=QFormerConfig(
            image_width=1288,
            num_queries=4,
            width=32,
            depth=2,
            num_heads=2,
            ffn_width=64,
            vocab_size=len(pieces.kept),
            max_positions=16,
        ),
        language=OptConfig(
            vocab_size=words.get_vocab_size(), width=32, depth=2, num_heads=2, ffn_width=64, max_positions=160
        ),
        shared_width=16,
    )
    return ModelParts(
        name="tiny",
        network=lively(Blip2Network(config)),
        transform=ImageTransform(64),
        matching=MatchingText(Tokenizer(pieces.tokenizer, "[CLS]", "[PAD]"), max_tokens=16),
        tokenizer=Tokenizer(words, "</s>", "<pad>"),
        defaults=GenerationDefaults(
            captions=replace(CAPTIONS, max_new_tokens=8, min_new_tokens=2), answers=replace(ANSWERS, max_new_tokens=6)
        ),
    )


def lively(network: Blip2Network) -> Blip2Network:
    """Weights so large that what the network says depends on what it sees: small ones say the same of all."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.05, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3, generator=generator)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    nn.init.normal_(network.qformer.queries, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a folder on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_native(tiny_parts, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder: Path) -> Model:
    """The model, loaded."""
    import openblip

    return openblip.load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def image_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five different images of different shapes, `photo1.png` to `photo5.png`, in one folder."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(3)
    paths = []
    for number in range(1, 6):
        coarse = random.integers(0, 256, (number + 1, 4, 3), dtype=np.uint8)
        path = folder / f"photo{number}.png"
        Image.fromarray(coarse).resize((60 + 10 * number, 90), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths
