"""What `generate` of all models does once the prompts are read: texts, and the ids that transformers makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from openblip.errors import OptionError, is_several, whole_number
from openblip.generation.engine import generate, stream
from openblip.generation.options import Generation, ResolvedOptions
from openblip.generation.prefix import Prefix
from openblip.integrations.transformers.options import GenerateOptions, Streamer
from openblip.integrations.transformers.outputs import GenerateOutput
from openblip.nn.language_model import LanguageModel


@dataclass(frozen=True)
class Prompts:
    """What texts are to follow.

    Attributes:
        rows: embeddings [T_i, token width] of each prompt.
        front: ids [B, T] that are returned in front of the texts.
        used: ids of each prompt that count as repeated; None for none.
        images: what the prompts are read beside, one each; None where it is among their embeddings.
    """

    language: LanguageModel
    rows: Sequence[Tensor]
    front: Tensor
    used: Sequence[Tensor] | None = None
    images: Sequence[Prefix] | None = None


def counts_words(options: ResolvedOptions) -> bool:
    """Whether it matters which ids stand in a prompt."""
    return options.repetition_penalty != 1 or options.no_repeat_ngram_size > 0


def stop_of(options: GenerateOptions, usual: int) -> int:
    """The token that ends a text. Raises OptionError when there are to be several."""
    stop = options.get("eos_token_id")
    if stop is None:
        return usual
    ids: list[Any] = list(cast(Any, stop)) if is_several(stop) else [stop]
    if len(ids) != 1:
        raise OptionError(f"eos_token_id has {len(ids)} tokens: one ends a text here")
    return whole_number("eos_token_id", ids[0], 0)


def write_behind(prompts: Prompts, chosen: ResolvedOptions, options: GenerateOptions, pad: int) -> Any:
    """Ids [B * num_return_sequences, length], or with return_dict_in_generate a `GenerateOutput`.

    Args:
        chosen: `options` in the engine's words.
        pad: fills up what ends early, unless the options say another id.

    Raises:
        OptionError: the options do not go together, or more tokens than the model has positions.
    """
    (stop,), front = chosen.stop_ids, prompts.front
    streamer = options.get("streamer")
    if streamer is not None:
        if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise OptionError(f"streamer is {streamer!r}: give an object with put and end, as a TextStreamer")
        return _streamed(prompts, chosen, streamer)
    found = generate(prompts.language, prompts.rows, chosen, prompts.used, prompts.images)
    texts = [text for group in found for text in group]
    filler = options.get("pad_token_id")
    if filler is None:
        filler = pad
    if chosen.num_beams > 1 and filler == 0:
        filler = stop  # as there, where 0 counts as none
    front = front.repeat_interleave(chosen.num_return_sequences, dim=0)
    ids = torch.cat([front, _rectangle(texts, stop, filler).to(front)], dim=1)
    if not options.get("return_dict_in_generate"):
        return ids
    scores: Tensor | None = None
    if options.get("output_scores"):
        if chosen.num_beams == 1:
            raise OptionError(
                "output_scores goes with num_beams here: for the log-probability of every token, "
                "use openblip.load(...).caption or .ask with details=True"
            )
        scores = torch.tensor([text.score for text in texts], device=ids.device)
    return GenerateOutput(sequences=ids, sequences_scores=scores)


def _streamed(prompts: Prompts, options: ResolvedOptions, streamer: Streamer) -> Tensor:
    """The ids of one text, which the streamer is told as they come; it is told of the end in any case."""
    ids = []
    try:
        if len(prompts.rows) != 1:
            raise OptionError(f"a streamer was given with {len(prompts.rows)} images: it takes the text of one")
        image = None if prompts.images is None else prompts.images[0]
        used = None if prompts.used is None else prompts.used[0]
        tokens = stream(prompts.language, prompts.rows[0], options, image, used, tell_stop=True)
        streamer.put(prompts.front.cpu())
        for token in tokens:
            ids.append(token)
            streamer.put(torch.tensor([token]))
    finally:
        streamer.end()
    return torch.cat([prompts.front, prompts.front.new_tensor([ids])], dim=1)


def _rectangle(texts: Sequence[Generation], stop: int, filler: int) -> Tensor:
    """Generated ids with the stop token that ended them: [N, longest]."""
    rows = [[*text.ids, stop] if text.stopped else list(text.ids) for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], dtype=torch.int64)
