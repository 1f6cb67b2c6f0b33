"""The entry point of generation: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from openblip.generation.beam import generate_beams
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefill import prefill
from openblip.generation.prefix import Prefix
from openblip.generation.sampling import generate_sequentially, iterate_tokens
from openblip.nn.language_model import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    options: GenerationOptions,
    prompt_ids: Sequence[Tensor] | None = None,
    prefix: Prefix | Sequence[Prefix] | None = None,
    uniforms: Tensor | None = None,
) -> list[list[Generation]]:
    """Generate texts that continue each prompt; they do not depend on what else is in the batch.

    Args:
        prompts: embeddings [T_i, token width], visual and word tokens alike, of any lengths.
        prompt_ids: ids [n_i] of the prompt, which count as repetitions, too; by default only generated tokens do.
            -1 stands for an embedding that is no token of the text.
        prefix: the common beginning of all prompts, which they leave out: it is read once for all of them, and for all
            calls with the same prefix. Or one of each prompt.
        uniforms: numbers from 0 to 1 [prompts, num_return_sequences, max_new_tokens] that decide what is sampled,
            instead of a seed.

    Returns:
        for each prompt its `num_return_sequences` texts, best first.

    Raises:
        OptionError: prompt and new tokens exceed the model's positions.
    """
    if not prompts:
        return []
    resolved = options.resolved()
    start = prefill(model, prompts, resolved, prompt_ids, prefix)
    if resolved.num_beams > 1:
        return generate_beams(start, resolved)
    return generate_sequentially(start, resolved, uniforms)


def stream(
    model: LanguageModel,
    prompt: Tensor,
    options: GenerationOptions,
    prefix: Prefix | None = None,
    prompt_ids: Tensor | None = None,
    tell_stop: bool = False,
) -> Generator[int, None, None]:
    """Tokens of one greedy or sampled text as they are chosen; see `generate`.

    The prompt is read at once. Closing or deleting the iterator frees the cache of the prompt.

    Args:
        tell_stop: whether to yield the stop token that ends the text, too.

    Raises:
        OptionError: a beam search or several texts are asked for, or prompt and new tokens exceed the model's
            positions.
    """
    resolved = options.resolved()
    resolved.check_streaming()
    # A generator must not leave inference mode switched on for its caller between two tokens.
    with torch.inference_mode():
        start = prefill(model, [prompt], resolved, None if prompt_ids is None else [prompt_ids], prefix)
    return _tokens(iterate_tokens(start, resolved), () if tell_stop else resolved.stop_ids)


def _tokens(walked: Iterator[tuple[int, int, float]], hidden: tuple[int, ...]) -> Generator[int, None, None]:
    while True:
        with torch.inference_mode():
            found = next(walked, None)
        if found is None or found[1] in hidden:
            return
        yield found[1]
