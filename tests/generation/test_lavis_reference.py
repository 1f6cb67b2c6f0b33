"""Ids that LAVIS' own generation recorded on small random weights (tests/fixtures/lavis).

LAVIS begins every text with the start token and counts OPT's in `max_length`; ours does neither.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.decoder_names import decoder_from_lavis
from openblip.checkpoints.t5_names import t5_from_lavis
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.decoder import Decoder, DecoderConfig
from openblip.nn.t5 import T5, T5Config

FOLDER = Path(__file__).parents[1] / "fixtures" / "lavis"
START, STOP = 2, 3
T5_STOP = 1
A_PHOTO_OF = (23, 50, 57)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "opt_ref.safetensors")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    sizes = json.loads((FOLDER / "meta.json").read_text())["config"]["opt"]
    built = Decoder(
        DecoderConfig(
            sizes["vocab_size"],
            sizes["hidden_size"],
            sizes["num_hidden_layers"],
            sizes["num_attention_heads"],
            sizes["ffn_dim"],
            max_positions=sizes["max_position_embeddings"],
        )
    )
    state = load_file(FOLDER / "opt_weights.safetensors")
    built.load_state_dict(decoder_from_lavis(state))
    return built.eval()


def expected(ids: Tensor) -> list[tuple[int, ...]]:
    rows = []
    for row in ids.tolist():
        assert row[0] == START
        rows.append(tuple(row[1 : row.index(STOP)] if STOP in row else row[1:]))
    return rows


@pytest.mark.parametrize("beams", [1, 5])
def test_captions(decoder: Decoder, recorded: dict[str, Tensor], beams: int) -> None:
    ids = recorded[f"generate_beam{beams}_ids"]
    prompt = decoder.embed(torch.tensor([START, *A_PHOTO_OF]))
    rows = [torch.cat([visual, prompt]) for visual in recorded["inputs_opt"]]
    options = GenerationOptions(max_new_tokens=ids.shape[1] - 1, num_beams=beams, stop_ids=(STOP,))
    assert [texts[0].ids for texts in generate(decoder, rows, options)] == expected(ids)


@pytest.mark.parametrize(("beams", "name"), [(1, "predict_answers_greedy_ids"), (5, "predict_answers_ids")])
def test_answers_to_questions_of_different_lengths(
    decoder: Decoder, recorded: dict[str, Tensor], beams: int, name: str
) -> None:
    ids = recorded[name]
    rows = []
    for visual, question, mask in zip(
        recorded["inputs_opt"], recorded["pa_input_ids"], recorded["pa_attention_mask"], strict=True
    ):
        rows.append(torch.cat([visual, decoder.embed(question[mask.bool()])]))
    options = GenerationOptions(max_new_tokens=ids.shape[1] - 1, num_beams=beams, length_penalty=0.0, stop_ids=(STOP,))
    assert [texts[0].ids for texts in generate(decoder, rows, options)] == expected(ids)


@pytest.mark.parametrize("beams", [1, 5])
def test_captions_of_t5(beams: int) -> None:
    sizes = json.loads((FOLDER / "meta.json").read_text())["config"]["t5"]
    config = T5Config(
        sizes["vocab_size"],
        sizes["d_model"],
        sizes["num_layers"],
        sizes["num_decoder_layers"],
        sizes["num_heads"],
        sizes["d_kv"],
        sizes["d_ff"],
        activation="gelu",
    )
    t5 = T5(config).eval()
    t5.load_state_dict(t5_from_lavis(load_file(FOLDER / "t5_weights.safetensors"), config))
    recorded = load_file(FOLDER / "t5_ref.safetensors")
    ids = recorded[f"generate_beam{beams}_ids"]
    # LAVIS' tokeniser ends the prompt with </s>.
    prompt = t5.embed(torch.tensor([*A_PHOTO_OF, T5_STOP]))
    rows = [torch.cat([visual, prompt]) for visual in recorded["inputs_t5"]]
    options = GenerationOptions(max_new_tokens=ids.shape[1] - 1, num_beams=beams, stop_ids=(T5_STOP,))
    assert [texts[0].ids for texts in generate(t5, rows, options)] == [tuple(row[1:]) for row in ids.tolist()]
