"""BLIP-2 with T5: all forms that a folder of transformers has, its settings, and the official names and shapes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, Blip2ForConditionalGeneration
from transformers import Blip2Config as TheirBlip2Config
from transformers import T5Config as TheirT5Config

import openblip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.transformers import to_transformers
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.registry import find_model
from openblip.checkpoints.transformers.config import read_config
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.write import save_transformers
from openblip.errors import CheckpointError
from openblip.nn.t5 import T5Config
from tests.pairs.prompts import prompt_row

from .theirs import FLAN, Theirs, t5_words, write_t5_writer

TOLERANCE = 1e-5
PROMPT = "Question: what is it? Answer:"
HEAD, TABLE = "language_model.lm_head.weight", "language_model.shared.weight"
STRAYS = ("language_model.encoder.embed_tokens.weight", "language_model.decoder.embed_tokens.weight")


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_t5_writer(tmp_path_factory.mktemp("models") / "flan", FLAN)


@pytest.fixture
def folder(flan: Theirs, tmp_path: Path) -> Path:
    """A copy of the FLAN-T5 that a test may change."""
    return Path(shutil.copytree(flan.folder, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def load_theirs(folder: Path) -> Blip2ForConditionalGeneration:
    model, report = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def same_state(first: ModelParts, second: ModelParts) -> bool:
    ours, others = first.network.state_dict(), second.network.state_dict()
    return list(ours) == list(others) and all(torch.equal(ours[name], others[name]) for name in ours)


# Forms of folders


def older(config: dict[str, Any]) -> None:
    """As transformers 4 wrote FLAN-T5's."""
    del config["text_config"]["scale_decoder_outputs"]
    config["text_config"]["tie_word_embeddings"] = False


def shared_under_a_second_name(state: dict[str, Tensor]) -> None:
    state[STRAYS[0]] = state.pop(TABLE)


@pytest.mark.parametrize("form", ["older", "strays", "second name", "second names alone", "shards", "extra bias"])
def test_every_form_of_folder_gives_the_same_tensors(flan: Theirs, folder: Path, form: str) -> None:
    if form == "older":
        edit(folder / "config.json", older)
    if form == "strays":
        edit_weights(folder, lambda s: s.update({name: s[TABLE].clone() for name in STRAYS}))
    if "second" in form:
        edit_weights(folder, shared_under_a_second_name)
    if form.endswith("alone"):
        edit_weights(folder, lambda s: s.update({STRAYS[1]: s[STRAYS[0]].clone()}))
    if form == "shards":
        save_transformers(load_transformers(folder), folder, shard_bytes=30_000)
    if form == "extra bias":
        edit_weights(folder, lambda s: s.update({UNUSED: torch.zeros(8, 4)}))
    assert same_state(load_transformers(folder), load_transformers(flan.folder))


UNUSED = "language_model.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@torch.no_grad()
def test_a_head_that_is_not_stored_is_the_word_table_where_transformers_ties(
    folder: Path, image_paths: list[Path]
) -> None:
    edit_weights(folder, lambda s: s.pop(HEAD))
    theirs, ours = load_theirs(folder), openblip.load(folder, device="cpu")
    assert isinstance(ours.network.config.language, T5Config) and not ours.network.config.language.tied_head
    inputs = AutoProcessor.from_pretrained(folder)(
        images=Image.open(image_paths[0]).convert("RGB"), text=PROMPT, return_tensors="pt"
    )
    labels, t5 = torch.tensor([[5, 9]]), ours.network.t5
    prompt = prompt_row(ours, image_paths[0], PROMPT)[None]
    logits = t5.logits(t5.hidden_before(prompt, None, labels))
    assert (logits - theirs(**inputs, labels=labels).logits).abs().max() <= TOLERANCE * logits.abs().max()


def test_tables_are_never_tied_against_what_is_said_or_stored(folder: Path) -> None:
    whole = (folder / "config.json").read_text(encoding="utf-8")
    edit(folder / "config.json", lambda c: c["text_config"].update(scale_decoder_outputs=True))
    with pytest.raises(
        CheckpointError, match=r"differ, only tied tables can be read: .* say tie_word_embeddings false"
    ):
        load_transformers(folder)
    (folder / "config.json").write_text(whole, encoding="utf-8")
    edit_weights(folder, lambda s: s.update({STRAYS[1]: s[TABLE] + 1e-3}))
    with pytest.raises(
        CheckpointError, match=r"decoder\.embed_tokens\.weight and language_model\.shared\.weight differ"
    ):
        load_transformers(folder)
    edit_weights(folder, lambda s: [s.pop(HEAD), s.pop(STRAYS[1])])
    edit(folder / "config.json", older)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing from model\.safetensors$"):
        load_transformers(folder)


def test_a_vocabulary_has_to_be_one_that_can_be_read(folder: Path) -> None:
    words = load_transformers(folder).tokenizer
    assert words is not None and words.vocab_size == t5_words().get_vocab_size()  # the mark for images is no word
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"\n\x0e")
    with pytest.raises(CheckpointError, match=r"vocabulary in spiece\.model alone, .* get tokenizer\.json"):
        load_transformers(folder)


# Configs


def read_text_config(folder: Path, text: dict[str, Any]) -> T5Config:
    content = {"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**content, "text_config": {"model_type": "t5", **text}}))
    found = read_config(folder)
    assert found.network.language is not None and found.words is not None
    assert (found.words.start, found.words.pad, found.words.stop) == (1, 0, 1)
    return found.network.language


@pytest.mark.parametrize(
    "text",
    [
        {},
        FLAN,
        {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False, "num_layers": 3},
        {"feed_forward_proj": "gated-relu", "scale_decoder_outputs": False, "tie_word_embeddings": True},
        {"feed_forward_proj": "gelu", "num_decoder_layers": None, "layer_norm_epsilon": 1e-5, "dropout_rate": 0.0},
    ],
)
def test_settings_mean_what_transformers_takes_them_for(tmp_path: Path, text: dict[str, Any]) -> None:
    found = read_text_config(tmp_path, text)
    theirs = TheirBlip2Config.from_pretrained(tmp_path).text_config
    assert isinstance(theirs, TheirT5Config)
    assert found == T5Config(
        vocab_size=theirs.vocab_size,
        width=theirs.d_model,
        depth=theirs.num_layers,
        decoder_depth=theirs.num_decoder_layers,
        num_heads=theirs.num_heads,
        head_width=theirs.d_kv,
        ffn_width=theirs.d_ff,
        activation=theirs.dense_act_fn,
        gated=theirs.is_gated_act,
        tied_head=theirs.scale_decoder_outputs,
        relative_buckets=theirs.relative_attention_num_buckets,
        relative_reach=theirs.relative_attention_max_distance,
        norm_eps=theirs.layer_norm_epsilon,
        start_id=0,
        dropout=theirs.dropout_rate,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "T5 activation 'silu' is not one of"),
        ({"feed_forward_proj": "mixed-gelu"}, "feed_forward_proj is 'mixed-gelu', neither"),
        ({"feed_forward_proj": 3}, "feed_forward_proj is 3, not a text"),
        ({"pad_token_id": "<pad>"}, "decoder_start_token_id is '<pad>', not a whole number"),
    ],
)
def test_a_t5_that_cannot_be_built_is_explained(tmp_path: Path, text: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_text_config(tmp_path, text)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["blip2-flan-t5-xl", "blip2-flan-t5-xxl"])
def test_official_models_have_the_same_names_and_shapes(name: str, tmp_path: Path) -> None:
    model = find_model(f"Salesforce/{name}")
    assert model is not None
    config = model.config()
    assert isinstance(config.language, T5Config)
    text = {
        "model_type": "t5",
        "d_model": config.language.width,
        "d_ff": config.language.ffn_width,
        "num_layers": config.language.depth,
        "num_heads": config.language.num_heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    their_config = TheirBlip2Config(text_config=text, architectures=["Blip2ForConditionalGeneration"])
    with torch.device("meta"):
        theirs = {
            name: tensor.shape for name, tensor in Blip2ForConditionalGeneration(their_config).state_dict().items()
        }
    for second in STRAYS:
        theirs.pop(second)
    their_config.save_pretrained(tmp_path)
    ours = to_transformers(empty_network(read_config(tmp_path).network, tmp_path).state_dict())
    assert {name: tensor.shape for name, tensor in ours.items()} == theirs
