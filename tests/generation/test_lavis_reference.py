"""Ids that LAVIS' own generation recorded on small random weights (tests/fixtures/lavis).

LAVIS begins every text with the start token and counts it in `max_length`; ours does neither.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.decoder_names import decoder_from_lavis
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.decoder import Decoder, DecoderConfig

FOLDER = Path(__file__).parents[1] / "fixtures" / "lavis"
START, STOP = 2, 3
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
