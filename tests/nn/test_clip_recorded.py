"""CLIP against what LAVIS' own code computed: `OPENBLIP_LAVIS_ZOO=folder pytest -m real THIS_FILE`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from openblip.checkpoints.names.clip import openai_layout
from openblip.images.transform import ImageTransform, to_pixels
from tests.pairs.blip import need_recordings
from tests.pairs.clip import ClipRecording, load_recording, mask_of
from tests.pairs.gaps import difference

pytestmark = pytest.mark.real
CLOSE, GRADIENT = 2e-5, 1e-4


@pytest.fixture(scope="module")
def folder() -> Path:
    return need_recordings()


@pytest.fixture(params=["clip_vit", "clip_rn"])
def recording(request: pytest.FixtureRequest, folder: Path) -> ClipRecording:
    return load_recording(folder / f"{request.param}.pth")


def close(ours: Tensor, theirs: Tensor, tolerance: float = CLOSE) -> None:
    assert ours.shape == theirs.shape
    assert difference(ours, theirs) <= tolerance


def test_features_scores_and_classes(recording: ClipRecording) -> None:
    network, outputs = recording.network(), recording.outputs
    images = network.embed_images(recording.inputs["image"])
    texts = network.embed_texts(outputs["tokens"], recording.mask)
    close(images, outputs["encode_image"])
    close(texts, outputs["encode_text"])
    close(F.normalize(images, dim=-1), outputs["extract_features"]["image_embeds_proj"])
    close(F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T, outputs["sim_i2t"])
    close_in_size(network.log_scale.exp(), outputs["logit_scale_exp"])
    # LAVIS' classes: 100 times the cosine, whatever scale was learned.
    close_in_size(100 * F.normalize(images, dim=-1) @ outputs["classifier"], outputs["predictions"])


def close_in_size(ours: Tensor, theirs: Tensor) -> None:
    """For what grows from block to block, up to 80: LAVIS' own float32 is 4e-4 from the same weights in float64."""
    size = max(1.0, float(theirs.abs().max()))
    close(ours / size, theirs / size)


def test_every_block(recording: ClipRecording) -> None:
    network, outputs = recording.network(), recording.outputs
    if "vit_ln_pre" in outputs:
        assert network.vision.class_vector(recording.inputs["image"]).shape == outputs["vit_ln_post_cls"].shape
        x = network.vision.embed(recording.inputs["image"])  # type: ignore[operator]
        close_in_size(x, outputs["vit_ln_pre"])
        for index, block in enumerate(network.vision.blocks):  # type: ignore[arg-type]
            x = block(x)
            close_in_size(x.transpose(0, 1), outputs[f"vit_block_{index}_LND"])
        close_in_size(network.vision.final_norm(x[:, 0]), outputs["vit_ln_post_cls"])  # type: ignore[operator]
        x = network.text.words(outputs["tokens"][:2]) + network.text.positions
        for index, block in enumerate(network.text.blocks):
            x = block(x, True)
            close_in_size(x.transpose(0, 1), outputs[f"text_block_{index}_LND"])
        return
    x = recording.inputs["image"][:2]
    for layer in network.vision.stem:  # type: ignore[union-attr]
        x = F.relu(layer(x))
    x = F.avg_pool2d(x, 2)
    close_in_size(x, outputs["resnet_stem"])
    for stage in (1, 2, 3, 4):
        x = network.vision.get_submodule(f"stage{stage}")(x)
        close_in_size(x, outputs[f"resnet_layer{stage}"])
    close_in_size(network.vision.pool(x), outputs["resnet_attnpool"][:2])  # type: ignore[operator]


def test_loss_and_gradients(recording: ClipRecording) -> None:
    network, outputs = recording.network(), recording.outputs
    images = network.embed_images(recording.inputs["image"])
    texts = network.embed_texts(outputs["tokens"][:4], recording.mask[:4])
    logits, right = network.contrast(images, texts), torch.arange(4)
    loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    close(loss, outputs["loss"])
    loss.backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    gradients = openai_layout(recording.config).to_theirs(ours)
    for name, gradient in outputs["gradients"].items():
        close(gradients[name], gradient, GRADIENT)


def test_a_long_text_keeps_its_end(recording: ClipRecording) -> None:
    """LAVIS cuts it off, and gives every long text the feature of its start; with the end it is another one."""
    network, outputs = recording.network(), recording.outputs
    ids = outputs["long_text_tokens"]
    close(network.embed_texts(ids, mask_of(ids)), outputs["encode_long_text"])
    ended = ids.clone()
    ended[0, -1] = recording.config.text_vocab_size - 1
    assert difference(network.embed_texts(ended, mask_of(ended)), outputs["encode_long_text"]) > 0.1


def test_exact_gelu(folder: Path) -> None:
    recording = load_recording(folder / "clip_vit.pth")
    network = recording.network()
    for module in network.modules():
        if hasattr(module, "activation"):
            module.activation = "gelu"
    images = network.embed_images(recording.inputs["image"])
    close(images, recording.outputs["encode_image_if_gelu"])
    texts = network.embed_texts(recording.outputs["tokens"], recording.mask)
    close(texts, recording.outputs["encode_text_if_gelu"])


@pytest.mark.parametrize("name", ["wide", "tall", "small", "odd", "grey"])
def test_images_are_cut_as_lavis_cuts_them(folder: Path, name: str) -> None:
    content = torch.load(folder / "processors.pth", weights_only=True)
    image = Image.fromarray(content["inputs"][f"picture_{name}"].numpy())
    pixels = to_pixels([image], ImageTransform(32, crop=True))[0]
    assert difference(pixels, content["outputs"][f"clip_image_eval_32_{name}"]) <= 1e-6
