"""The one entrance: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from openblip.generation.beam import generate_beams
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefill import prefill
from openblip.generation.prefix import Prefix
from openblip.generation.sequential import generate_sequentially, walk
from openblip.nn.language_model import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    options: GenerationOptions,
    prompt_ids: Sequence[Tensor] | None = None,
    prefix: Prefix | None = None,
) -> list[list[Generation]]:
    """Go on from each prompt; results do not depend on what else is in the batch.

    Args:
        prompts: embeddings [T_i, token width], visual and word tokens alike, of any lengths.
        prompt_ids: ids [n_i] that the repetition penalty counts as used already; by default only what is
            generated counts.
        prefix: what all prompts begin with, and are given without: it is read once for all of them, and for all calls
            that are given the same.

    Returns:
        for each prompt its `num_return` texts, best first.

    Raises:
        OptionError: prompt and new tokens exceed the model's positions.
    """
    if not prompts:
        return []
    start = prefill(model, prompts, options, prompt_ids, prefix)
    search = generate_beams if options.num_beams > 1 else generate_sequentially
    return search(start, options)


def stream(
    model: LanguageModel, prompt: Tensor, options: GenerationOptions, prefix: Prefix | None = None
) -> Iterator[int]:
    """Tokens of one greedy or sampled text as they are chosen, without the stop token; see `generate`."""
    options = replace(options, num_beams=1, num_return=1)
    # A generator must not leave inference mode switched on for its caller between two tokens.
    with torch.inference_mode():
        start = prefill(model, [prompt], options, None, prefix)
        tokens = walk(start, options)
    while True:
        with torch.inference_mode():
            found = next(tokens, None)
        if found is None or found[1] in options.stop_ids:
            return
        yield found[1]
