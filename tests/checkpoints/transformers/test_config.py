"""Configs of every vintage mean what transformers takes them for; what cannot be built is explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Blip2Config as TheirBlip2Config

from openblip.checkpoints.model_parts import ANSWERS, GenerationDefaults
from openblip.checkpoints.transformers.config import FolderConfig, WordIds, read_config
from openblip.errors import CheckpointError
from openblip.generation.options import GenerationOptions
from openblip.images.transform import ImageTransform
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import EVA_VIT_G, VitConfig
from openblip.text import PromptTemplates

OPT_2_7B = OptConfig(50304, 2560, 32, 32, 10240, dropout=0.1)

# The hub's Salesforce/blip2-opt-2.7b since its texts have marks for images: what differs from the defaults.
RECENT = {
    "architectures": ["Blip2ForConditionalGeneration"],
    "image_text_hidden_size": 256,
    "image_token_index": 50265,
    "initializer_factor": 1.0,
    "model_type": "blip-2",
    "num_query_tokens": 32,
    "qformer_config": {"classifier_dropout": None, "model_type": "blip_2_qformer"},
    "text_config": {
        "_name_or_path": "facebook/opt-2.7b",
        "activation_dropout": 0.0,
        "eos_token_id": 50118,
        "ffn_dim": 10240,
        "hidden_size": 2560,
        "model_type": "opt",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "prefix": "</s>",
        "torch_dtype": "float16",
        "vocab_size": 50304,
        "word_embed_proj_dim": 2560,
    },
    "torch_dtype": "float32",
    "use_decoder_only_language_model": True,
    "vision_config": {"dropout": 0.0, "model_type": "blip_2_vision_model", "num_channels": 3, "projection_dim": 512},
}
# As of early 2023: complete, with an eps of 1e-5, without the number of queries and the mark.
EARLY = {
    "architectures": ["Blip2ForConditionalGeneration"],
    "model_type": "blip-2",
    "qformer_config": {
        "_name_or_path": "",
        "attention_probs_dropout_prob": 0.1,
        "chunk_size_feed_forward": 0,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 1408,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "blip_2_qformer",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "position_embedding_type": "absolute",
        "vocab_size": 30522,
    },
    "text_config": {
        **{key: value for key, value in RECENT["text_config"].items() if key != "vocab_size"},  # type: ignore[attr-defined]
        "_remove_final_layer_norm": False,
        "activation_function": "relu",
        "bos_token_id": 2,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "max_position_embeddings": 2048,
        "pad_token_id": 1,
        "vocab_size": 50272,
    },
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 1408,
        "image_size": 224,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-05,
        "model_type": "blip_2_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 39,
        "patch_size": 14,
        "qkv_bias": True,
    },
}
MATCHING = {
    "architectures": ["Blip2ForImageTextRetrieval"],
    "model_type": "blip-2",
    "qformer_config": {"model_type": "blip_2_qformer", "use_qformer_text_input": True, "vocab_size": 30523},
    "text_config": {"model_type": "opt"},
}


def read(folder: Path, config: object, **files: object) -> FolderConfig:
    """The config of a folder of `config.json` and, by the names of their stems, other files."""
    for stem, content in {"config": config, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return read_config(folder)


def test_a_recent_folder(tmp_path: Path) -> None:
    found = read(tmp_path, RECENT, generation_config={"eos_token_id": 50118, "bos_token_id": 2, "pad_token_id": 1})
    assert found.network.vision == EVA_VIT_G
    assert found.network.qformer == QFormerConfig(1408, vocab_size=0)
    assert found.network.language == OPT_2_7B
    assert (found.network.shared_width, found.network.vision_norm_eps) == (256, 1e-6)
    assert found.words == WordIds(start=2, pad=1, stop=50118, image=50265)
    assert found.matching_tokens is None
    assert found.transform == ImageTransform(224)
    assert found.prompts == PromptTemplates()
    assert found.defaults == GenerationDefaults(answers=replace(ANSWERS, length_penalty=0.0))


def test_an_early_folder_keeps_the_eps_that_transformers_takes(tmp_path: Path) -> None:
    early, recent = read(tmp_path, EARLY).network, read(tmp_path, RECENT).network
    assert isinstance(early.vision, VitConfig)
    assert (early.vision.layer_norm_eps, early.vision_norm_eps) == (1e-5, 1e-5)
    assert early.qformer == recent.qformer
    assert early.language is not None
    assert early.language.vocab_size == 50272


def test_a_folder_that_matches(tmp_path: Path) -> None:
    found = read(tmp_path, MATCHING)
    assert found.network.language is None
    assert found.network.qformer == QFormerConfig(1408)
    assert (found.words, found.matching_tokens) == (None, 32)
    coco = read(tmp_path, {**MATCHING, "vision_config": {"image_size": 364}})
    assert (coco.transform.image_size, coco.prompts.caption) == (364, "")


def test_captions_of_the_models_tuned_on_coco_have_a_beginning(tmp_path: Path) -> None:
    assert read(tmp_path, {**RECENT, "vision_config": {"image_size": 364}}).prompts.caption == "a photo of"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_settings_that_are_left_out_have_their_defaults(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever transformers leaves out because it is its own default, or writes all the same, makes no difference."""
    whole = TheirBlip2Config().to_dict()
    expected = read(tmp_path_factory.getbasetemp(), whole)
    for section in ("vision_config", "qformer_config", "text_config"):
        dropped = data.draw(st.sets(st.sampled_from(sorted(whole[section]))))
        whole[section] = {key: value for key, value in whole[section].items() if key not in dropped}
        if data.draw(st.integers(0, 9)) == 0:
            whole[section] = None
    for name in ("num_query_tokens", "image_token_index", "image_text_hidden_size", "architectures", "dtype"):
        if data.draw(st.booleans()):
            whole.pop(name, None)
    assert read(tmp_path_factory.getbasetemp(), whole) == expected


@pytest.mark.parametrize(
    ("architectures", "text_input", "matches"),
    [
        (["Blip2ForConditionalGeneration"], True, False),
        (["Blip2Model"], False, False),
        (["Blip2ForImageTextRetrieval"], False, True),
        (None, True, True),
        ([], False, False),
    ],
)
def test_the_class_decides_what_a_folder_holds(
    tmp_path: Path, architectures: list[str] | None, text_input: bool, matches: bool
) -> None:
    config = {
        "model_type": "blip-2",
        "architectures": architectures,
        "qformer_config": {"use_qformer_text_input": text_input},
    }
    assert (read(tmp_path, config).matching_tokens is not None) == matches


@pytest.mark.parametrize(
    ("text", "generation", "stop"),
    [
        ({"eos_token_id": 50118}, {"eos_token_id": 2}, 50118),
        ({}, {"eos_token_id": 50118}, 50118),
        ({"eos_token_id": None}, {"eos_token_id": [7, 2]}, 7),
        ({}, {}, 2),
    ],
)
def test_the_language_models_own_stop_token_wins(
    tmp_path: Path, text: dict[str, Any], generation: dict[str, Any], stop: int
) -> None:
    found = read(tmp_path, {"model_type": "blip-2", "text_config": text}, generation_config=generation)
    assert found.words == WordIds(start=2, pad=1, stop=stop)


def test_generation_settings_of_the_folder_are_used(tmp_path: Path) -> None:
    generation = {"num_beams": 3, "max_new_tokens": 12, "min_new_tokens": 2, "length_penalty": 0.5}
    found = read(tmp_path, RECENT, generation_config=generation).defaults
    assert found == GenerationDefaults(
        "\n",
        GenerationOptions(num_beams=3, max_new_tokens=12, min_new_tokens=2, length_penalty=0.5),
        GenerationOptions(num_beams=3, max_new_tokens=12, min_new_tokens=1, length_penalty=0.5),
    )


IMAGE = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "do_resize": True}


@pytest.mark.parametrize("size", [364, {"height": 364, "width": 364}, [364, 364]])
def test_the_image_processor_decides_about_images(tmp_path: Path, size: object) -> None:
    expected = ImageTransform(364, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert read(tmp_path, RECENT, preprocessor_config={**IMAGE, "size": size}).transform == expected
    # transformers 5 writes it into the processor's config, and reads it there first
    newer = {"image_processor": {**IMAGE, "size": 392}, "num_query_tokens": 32}
    assert read(tmp_path, RECENT, processor_config=newer).transform.image_size == 392


def change(section: str, **values: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.setdefault(section, {}).update(values)


FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.update(model_type="opt"), "a model of type 'opt', not 'blip-2'"),
    (lambda c: c.update(architectures=["Blip2TextModelWithProjection"]), "is of a Blip2TextModelWithProjection: only"),
    (lambda c: c.update(vision_config="eva"), "vision_config is 'eva', not a group"),
    (change("vision_config", hidden_act="relu"), "activation 'relu'"),
    (change("vision_config", qkv_bias=False), "vision_config has qkv_bias False, only True"),
    (change("vision_config", image_size=[224, 364]), "image_size is [224, 364], only squares"),
    (change("vision_config", num_attention_heads=5), "not a multiple of 5 heads"),
    (change("qformer_config", position_embedding_type="relative_key"), "'relative_key', only 'absolute'"),
    (change("qformer_config", num_attention_heads=0), "config.json"),
    (change("text_config", model_type="llama"), "a language model of type 'llama': only opt"),
    (change("text_config", activation_function="gelu"), "text_config has activation_function 'gelu', only 'relu'"),
    (change("text_config", enable_bias=False), "enable_bias False"),
    (change("text_config", word_embed_proj_dim=512), "word_embed_proj_dim differs"),
    (change("text_config", bos_token_id="</s>"), "the start token of text_config is '</s>', not an id"),
    (change("openblip", prompts={"question": "Q: {query}"}), "prompt cannot be filled in"),
    (change("openblip", prompts={"colour": "red"}), "unknown settings for PromptTemplates: colour"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_config_that_cannot_be_built_is_explained(
    tmp_path: Path, fault: Callable[[dict[str, Any]], object], message: str
) -> None:
    config = json.loads(json.dumps(RECENT))
    fault(config)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, config)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("length", [2, 513, "many"])
def test_texts_to_be_matched_fit_the_positions(tmp_path: Path, length: object) -> None:
    with pytest.raises(CheckpointError, match="not of 3 to 512"):
        read(tmp_path, {**MATCHING, "openblip": {"matching_tokens": length}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resample": 2}, "resample 2, only 3"),
        ({"do_normalize": False}, "do_normalize False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"size": {"shortest_edge": 224}}, "only squares"),
        ({"size": {"height": 224, "width": 336}}, "only squares"),
        ({"image_std": [1, 0, 1]}, "std"),
    ],
)
def test_an_image_processor_of_another_kind_is_explained(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, RECENT, preprocessor_config={**IMAGE, "size": 224, **values})
    assert message in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    read(tmp_path, RECENT)
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_config(tmp_path)
