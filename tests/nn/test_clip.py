"""CLIP's network: against transformers, against its ResNet in plain PyTorch, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.names.clip import TRANSFORMERS, openai_layout
from openblip.nn.clip import ClipConfig, ClipNetwork, ClipTextConfig
from openblip.nn.resnet_clip import ClipResNetConfig
from tests.checkpoints.clip_theirs import TEXTS, TheirClip, write_clip
from tests.pairs.clip import clip_vit, mask_of, plain_resnet, randomize
from tests.pairs.gaps import difference

TEXT = ClipTextConfig(vocab_size=563, width=48, depth=2, num_heads=2, mlp_width=96)
VIT = ClipConfig(clip_vit(32, 8, 64, 2, 2), TEXT, 40)
RESNET = ClipResNetConfig(image_size=64, width=8, depths=(1, 2, 1, 1), num_heads=4, output_width=40)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TheirClip:
    return write_clip(tmp_path_factory.mktemp("clip"))


def copy_of(theirs: TheirClip, dtype: torch.dtype = torch.float32) -> ClipNetwork:
    vision = theirs.model.config.vision_config
    config = ClipConfig(clip_vit(32, 8, vision.hidden_size, 2, 2), TEXT, 40)
    object.__setattr__(config.vision, "mlp_width", vision.intermediate_size)
    network = ClipNetwork(config)
    network.load_state_dict(TRANSFORMERS.to_ours(theirs.model.state_dict()))
    return network.to(dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_it_is_transformers_clip(theirs: TheirClip, dtype: torch.dtype, tolerance: float) -> None:
    network, model = copy_of(theirs, dtype), theirs.model.to(dtype)  # type: ignore[arg-type]
    pixels = torch.randn(3, 3, 32, 32, dtype=dtype)
    inputs = theirs.processor(text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    found = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=False)
    images, texts = network.embed_images(pixels), network.embed_texts(ids, mask)
    assert difference(images / images.norm(dim=-1, keepdim=True), found.image_embeds) <= tolerance
    assert difference(texts / texts.norm(dim=-1, keepdim=True), found.text_embeds) <= tolerance
    assert difference(network.contrast(images, texts), found.logits_per_image) <= 20 * tolerance
    theirs.model.float()


def test_gradients_are_transformers(theirs: TheirClip) -> None:
    network, model = copy_of(theirs, torch.float64), theirs.model.double()
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    inputs = theirs.processor(text=TEXTS[:3], padding=True, return_tensors="pt")
    model.zero_grad()
    model(**inputs, pixel_values=pixels, return_loss=True).loss.backward()
    logits = network.contrast(
        network.embed_images(pixels), network.embed_texts(inputs["input_ids"], inputs["attention_mask"].bool())
    )
    right = torch.arange(3)
    loss = torch.nn.functional.cross_entropy(logits, right) + torch.nn.functional.cross_entropy(logits.T, right)
    (loss / 2).backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    back = TRANSFORMERS.to_theirs(ours)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and difference(back[name], parameter.grad) <= 1e-9, name
    model.float()


def test_the_class_token_alone_is_what_it_is_among_all() -> None:
    network = ClipNetwork(VIT).double().eval()
    randomize(network)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert difference(network.vision.class_vector(pixels), network.vision(pixels)[:, 0]) <= 1e-12
    larger = torch.randn(1, 3, 48, 40, dtype=torch.float64)  # its positions are interpolated
    assert network.embed_images(larger).shape == (1, 40)


def test_later_words_and_padding_are_not_seen() -> None:
    network = ClipNetwork(VIT).double().eval()
    randomize(network)
    ids = torch.randint(1, 500, (3, 20))
    mask = torch.arange(20)[None] < torch.tensor([20, 7, 3])[:, None]
    whole = network.embed_texts(ids, mask)
    for row, length in enumerate((20, 7, 3)):
        alone = network.embed_texts(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert difference(whole[row], alone[0]) <= 1e-12
    with pytest.raises(ValueError, match="texts have 78 tokens, this CLIP reads up to 77"):
        network.embed_texts(torch.ones(1, 78, dtype=torch.int64), torch.ones(1, 78, dtype=torch.bool))


def test_the_resnet_is_what_openai_describes() -> None:
    config = ClipConfig(RESNET, TEXT, 40)
    network = ClipNetwork(config).double().eval()
    randomize(network)
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    state = openai_layout(config).to_theirs(network.state_dict())
    own = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    found: Tensor = network.embed_images(pixels)
    assert difference(found, plain_resnet(own, RESNET, pixels)) <= 1e-10
    assert found.std(dim=0).min() > 1e-3
    network.train()
    assert difference(network.embed_images(pixels), found) <= 1e-12  # its statistics stay
    with pytest.raises(ValueError, match=r"pixels are \[batch, 3, 64, 64\]"):
        network.embed_images(pixels[:, :, :32])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image_size": 60}, "image_size 60 is no multiple of 32"),
        ({"depths": (1, 2, 3)}, "four stages"),
        ({"depths": (1, 2, 0, 1)}, "whole numbers above 0"),
        ({"num_heads": 7}, "not a multiple of 7 heads"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, object], told: str) -> None:
    sizes = {"image_size": 64, "width": 8, "depths": (1, 1, 1, 1), "num_heads": 4, "output_width": 40}
    with pytest.raises(ValueError, match=told):
        ClipResNetConfig(**{**sizes, **wrong})  # type: ignore[arg-type]


def test_the_shared_space_has_one_width() -> None:
    with pytest.raises(ValueError, match="the ResNet gives 40 channels, the shared space has 41"):
        ClipNetwork(ClipConfig(RESNET, TEXT, 41))


def test_openais_and_our_names_fit_both_ways(tmp_path: Path) -> None:
    for config in (VIT, ClipConfig(RESNET, TEXT, 40)):
        state = ClipNetwork(config).state_dict()
        layout = openai_layout(config)
        theirs = layout.to_theirs(state)
        again = layout.to_ours(theirs | {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(563)})
        assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_ends_are_where_the_largest_id_is() -> None:
    assert mask_of(torch.tensor([[1, 9, 0], [1, 2, 9]])).tolist() == [[True, True, False], [True, True, True]]
