"""BLIP against transformers' models on the same random weights, and what its parts owe to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.attention_map import match_map, word_map
from openblip.nn.bert import Bert, BertConfig
from openblip.nn.bert_decoder import BertDecoder
from openblip.nn.blip import BlipConfig, BlipLanguageModel, BlipNetwork
from openblip.nn.quant.swap import quantize
from tests.pairs.blip_transformers import CONFIGS, ENCODE, STOP, TEXT, VISION, WIDTH, pair
from tests.pairs.gaps import difference
from tests.pairs.shake import shake

CLOSE = 2e-5


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def words(*lengths: int, first: int = 2) -> tuple[Tensor, Tensor]:
    """Texts [B, L] of random words that end with [SEP], padded behind, and their mask."""
    chance = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(5, 50, (len(lengths), max(lengths)), generator=chance)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    for row, length in enumerate(lengths):
        ids[row, length - 1] = STOP
    ids[:, 0] = first
    return ids.masked_fill(~mask, 0), mask


@torch.no_grad()
def test_captions_equal_transformers() -> None:
    ours, theirs = pair("caption")
    ids, mask = words(6, 4, first=ours.config.decode_id)
    features = ours.image_features(pixels())
    found = theirs(pixel_values=pixels(), input_ids=ids, attention_mask=mask.long())
    assert difference(features, found.image_embeds) <= CLOSE
    hidden = ours.decoder.decode(ours.decoder.embed(ids), mask, ours.decoder.remember(features))
    assert difference(ours.decoder.logits(hidden)[mask], found.logits[mask]) <= 10 * CLOSE
    # Theirs cuts the last id, which it takes for [SEP].
    prompt = torch.cat([ids[:1, :3], torch.tensor([[STOP]])], dim=1).expand(2, -1)
    said = theirs.generate(pixel_values=pixels(), input_ids=prompt.clone(), max_new_tokens=8, num_beams=1)
    texts = generated(ours, features, [ids[0, :3]] * 2, GenerationOptions(max_new_tokens=8, stop_ids=(STOP,)))
    assert [trimmed(row[3:]) for row in said.tolist()] == texts


@torch.no_grad()
def test_questions_equal_transformers() -> None:
    ours, theirs = pair("answer")
    ids, mask = words(6, 6, first=ENCODE)
    model = BlipLanguageModel(ours)
    features = ours.image_features(pixels())
    states = ours.encoder(ids, mask, model.remember(features))
    expected = theirs.text_encoder(
        input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=theirs.vision_model(pixels())[0]
    )[0]
    assert difference(states, expected) <= CLOSE
    said = theirs.generate(pixel_values=pixels(), input_ids=ids.clone(), max_new_tokens=8, num_beams=1)
    texts = generated(ours, features, list(ids), GenerationOptions(max_new_tokens=8, stop_ids=(STOP,)))
    assert [trimmed(row[1:]) for row in said.tolist()] == texts


@torch.no_grad()
def test_matching_equals_transformers() -> None:
    ours, theirs = pair("match")
    features = ours.image_features(pixels())
    ids, mask = words(7, 5)
    grounded = ours.begin_with_encode(ids)
    found = theirs(input_ids=grounded, attention_mask=mask.long(), pixel_values=pixels())
    assert difference(ours.itm_logits(ids, mask, features), found.itm_score) <= 10 * CLOSE
    cosines = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels(), use_itm_head=False).itm_score
    mine = ours.project_images(features[:, 0]) @ ours.project_texts(ours.encoder(ids, mask)[:, 0]).T
    assert difference(mine, cosines) <= CLOSE


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.4, "num_beams": 2}])
@torch.no_grad()
def test_prompts_of_a_batch_are_as_alone(options: dict[str, float]) -> None:
    ours = pair("caption")[0]
    features = ours.image_features(pixels(3))
    ids, mask = words(6, 3, 5, first=ours.config.decode_id)
    prompts = [row[: int(own.sum()) - 1] for row, own in zip(ids, mask, strict=True)]
    asked = GenerationOptions(max_new_tokens=7, stop_ids=(STOP,), **options)
    together = generated(ours, features, prompts, asked)
    for row, prompt in enumerate(prompts):
        assert generated(ours, features[row : row + 1], [prompt], asked) == [together[row]]
    assert len(set(map(tuple, together))) > 1


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_maps_are_those_of_transformers_attention(layer: int) -> None:
    """Grad-CAM of the attention that transformers gives out, by its own gradients."""
    ours, theirs = pair("match")
    theirs.set_attn_implementation("eager")
    ids, mask = words(7, 5)
    features = ours.image_features(pixels()).detach()
    found = theirs.text_encoder(
        ours.begin_with_encode(ids), attention_mask=mask.long(), encoder_hidden_states=features, output_attentions=True
    )
    attention = found.cross_attentions[layer]
    score = theirs.itm_head(found.last_hidden_state[:, 0])[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, attention)
    expected = (attention * gradient.clamp(min=0) * mask[:, None, :, None])[..., 1:].mean(dim=1)
    maps = match_map(ours, ids, mask, features, layer)
    assert float(expected.detach().max()) > 1e-4
    assert difference(maps, expected) <= CLOSE
    assert difference(word_map(maps, mask)[1], maps[1, 1:4].mean(dim=0)) <= CLOSE


@torch.no_grad()
def test_several_texts_share_an_image() -> None:
    ours = pair("match")[0]
    features = ours.image_features(pixels())
    ids, mask = words(7, 5, 6, 4)
    shared = ours.itm_logits(ids, mask, features)
    apart = ours.itm_logits(ids, mask, features.repeat_interleave(2, dim=0))
    assert difference(shared, apart) <= CLOSE
    with pytest.raises(ValueError, match="3 texts cannot be shared out evenly among 2 images"):
        ours.itm_logits(ids[:3], mask[:3], features)


@torch.no_grad()
def test_two_images_with_one_view_read_as_one() -> None:
    """NLVR's pair of equal projections, averaged, is one cross-attention on an image that is given twice."""
    one, two = Bert(TEXT).eval(), Bert(replace(TEXT, images=2)).eval()
    shake(one)
    state = dict(one.state_dict())
    for name in list(state):
        if ".cross_attention." in name and ".norm." not in name:
            tensor = state.pop(name)
            for view in ("first", "second"):
                state[name.replace(".cross_attention.", f".cross_attention.{view}.")] = tensor
    two.load_state_dict(state)
    features = torch.randn(2, 17, VISION.width)
    ids, mask = words(6, 4)
    seen = two(ids, mask, *two.remember_pair(features, features))
    assert difference(seen, one(ids, mask, one.remember(features))) <= CLOSE


def test_encoder_and_decoder_share_all_but_self_attention() -> None:
    """As one BERT each with these weights; a gradient of both reaches what they share, which has one name."""
    config = replace(CONFIGS["match"], decoder=TEXT, shares_text=True)
    both = BlipNetwork(config).eval()
    shake(both)
    state = both.state_dict()
    assert [name for name in state if name.startswith("decoder.") and "self_attention" not in name] == [
        f"decoder.head.{name}" for name in ("bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias")
    ]
    decoder = BertDecoder(TEXT).eval()
    shared = {f"decoder.{name.removeprefix('encoder.')}": one for name, one in state.items() if "encoder." in name}
    decoder.load_state_dict(
        {name.removeprefix("decoder."): one for name, one in {**shared, **state}.items() if name.startswith("decoder.")}
    )
    features = both.image_features(pixels()).detach()
    ids, mask = words(6, 4)

    def written(one: BertDecoder) -> Tensor:
        return one.logits(one.decode(one.embed(ids), mask, one.remember(features)))

    assert torch.equal(written(both.decoder), written(decoder))
    (written(both.decoder).sum() + both.itm_logits(ids, mask, features).sum()).backward()
    written(decoder).sum().backward()
    both.zero_grad()
    one, two = both.encoder.layers[0].ffn.fc1.weight, decoder.layers[0].ffn.fc1.weight
    written(both.decoder).sum().backward()
    assert one.grad is not None and two.grad is not None and difference(one.grad, two.grad) <= CLOSE
    quantize(both, 8)
    assert both.decoder.owner is both.encoder and written(both.decoder).shape == written(decoder).shape


@torch.no_grad()
def test_a_head_for_classes_reads_two_images_as_one_did() -> None:
    """Both images have the attention of the model that it came from; what merges them is new."""
    old = pair("match")[0]
    one = old.with_class_head(3, 1).eval()
    two = old.with_class_head(3, 2).eval()
    assert (two.config.num_classes, two.config.encoder.images, two.config.itm) == (3, 2, False)
    assert not any("merge" in name for name in two.state_dict())  # these two layers take the mean
    two.class_head.load_state_dict(one.class_head.state_dict())
    features = old.image_features(pixels())
    ids, mask = words(6, 4, first=ENCODE)
    assert difference(two.class_logits(ids, mask, features, features), one.class_logits(ids, mask, features)) <= CLOSE
    again = two.with_class_head(3, 2)
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert not torch.equal(two.with_class_head(4, 2).class_head.fc1.bias, two.class_head.fc1.bias)
    merging = replace(old.config, encoder=replace(old.config.encoder, merge_from=1))
    deeper = BlipNetwork(merging)
    deeper.load_state_dict(old.state_dict())
    merge = deeper.with_class_head(2, 2).encoder.layers[1].cross_attention.merge
    assert float(merge.weight.std()) == pytest.approx(0.02, rel=0.1) and not merge.bias.any()
    with pytest.raises(ValueError, match="it reads 2 images with a text, not 1"):
        two.with_class_head(2, 1)
    with pytest.raises(ValueError, match="it has no text encoder"):
        pair("caption")[0].with_class_head(2, 1)


@torch.no_grad()
def test_several_texts_share_two_images() -> None:
    network = pair("match")[0].with_class_head(2, 2).eval()
    left, right = network.image_features(pixels(4)).chunk(2)
    ids, mask = words(7, 5, 6, 4)
    apart = network.class_logits(ids, mask, left.repeat_interleave(2, dim=0), right.repeat_interleave(2, dim=0))
    assert difference(network.class_logits(ids, mask, left, right), apart) <= CLOSE


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="whose encoder and decoder share weights captions"):
        replace(CONFIGS["match"], shares_text=True)
    with pytest.raises(ValueError, match="without a text encoder writes captions and nothing else"):
        BlipConfig(VISION, decoder=TEXT, itm=True)
    with pytest.raises(ValueError, match="a BLIP that answers needs a decoder"):
        replace(CONFIGS["match"], answers=True)
    with pytest.raises(ValueError, match=f"the decoder reads {VISION.width} channels, what it reads has {WIDTH}"):
        replace(CONFIGS["match"], answers=True, decoder=TEXT)
    with pytest.raises(ValueError, match="beyond the 60 words"):
        replace(CONFIGS["caption"], decode_id=60)
    with pytest.raises(ValueError, match="images is 3"):
        BertConfig(images=3)
    decoder = BertDecoder(TEXT)
    memory = decoder.remember(torch.zeros(1, 4, VISION.width))
    with pytest.raises(ValueError, match="a text of 41 tokens is longer than the 40 positions"):
        decoder.decode(torch.zeros(1, 41, WIDTH), None, memory)


def generated(
    network: BlipNetwork, features: Tensor, prompts: Sequence[Tensor], options: GenerationOptions
) -> list[list[int]]:
    """New ids of each prompt, about an image each."""

    class Beside(BlipLanguageModel):
        def read(self, prompts, mask, new_tokens, texts=1, memory=None):  # type: ignore[no-untyped-def]
            return super().read(prompts, mask, new_tokens, texts, self.remember(features))

    model = Beside(network)
    begun = None if model.config.encodes_prompts else prompts
    found = generate(model, [model.embed(prompt) for prompt in prompts], options, begun)
    return [list(texts[0].ids) for texts in found]


def trimmed(ids: Sequence[int]) -> list[int]:
    ends = [place for place, index in enumerate(ids) if index in (STOP, 0)]
    return list(ids[: ends[0]] if ends else ids)
