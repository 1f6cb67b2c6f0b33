"""What the rest of BLIP-2 asks of a language model, whichever it is: to read prompts, to go on, to score texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class LanguageConfig(Protocol):
    """What others have to know of a language model.

    Attributes:
        kind: "opt", "t5" or "external": by which files and readers know it.
        is_external: transformers computes it, and its weights are no part of the network.
        vocab_size: ids it can read and say.
        token_width: width of the embeddings that enter: what the visual prompt has to have, too.
        max_positions: tokens of a prompt and its text together, or of each where prompts are encoded; None: any number.
        encodes_prompts: prompts go into an encoder and texts come out of a decoder, as in T5; otherwise a text goes
            on where its prompt ends, as in OPT.
        prompt_start_ids: what a prompt begins with where prompts are encoded; nothing otherwise.
        start_ids: what the decoder of one that encodes prompts begins with; nothing otherwise.
        prompt_counts: what a text begins with is part of it: its tokens count as used, and in the length that a beam's
            score is divided by.
        label_smoothing: of the loss that it was trained with, by which candidates for an answer are ranked, too.
    """

    @property
    def kind(self) -> str: ...
    @property
    def is_external(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def token_width(self) -> int: ...
    @property
    def max_positions(self) -> int | None: ...
    @property
    def encodes_prompts(self) -> bool: ...
    @property
    def prompt_start_ids(self) -> tuple[int, ...]: ...
    @property
    def start_ids(self) -> tuple[int, ...]: ...
    @property
    def prompt_counts(self) -> bool: ...
    @property
    def label_smoothing(self) -> float: ...


class Reading(Protocol):
    """Prompts that a language model has read, and B texts that go on from each."""

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """Read one more token of each text [P, B] and score the next: [P, B, vocabulary] float32.

        Args:
            parents: [P, B] int64, which text of its prompt, as they stood before, each text goes on from; None: from
                itself. At the first step all go on from their prompt. B may become less: texts that have ended are
                left behind.
        """

    def take_prompts(self, rows: Tensor) -> None:
        """Go on with the prompts `rows` [n] int64 alone, and their texts; this copies what was read of them."""


class Slots(Protocol):
    """Prompts that join and leave while texts are written: what continuous batching goes on from.

    Rows are prompts, and each has as many texts as any other. They are not disturbed by one another.
    """

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""

    def join(self, reading: Reading) -> None:
        """Take over the prompts of a reading of the same model, as the last rows, before any of their texts begins."""

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Let prompts leave, whose rows others take over. Returns which row each that stays was before."""

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        """As `Reading.step`, of all rows."""


class Reader(Protocol):
    """What reads prompts: a language model, or one that has read already what they begin with."""

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[Reading, Tensor]:
        """Read prompts [P, T, token width] padded on the left, leaving room for `texts` texts of `new_tokens` each.

        Args:
            mask: [P, T] bool, False for padding; None when there is none.

        Returns:
            what to go on from, and the scores of the first new token [P, vocabulary] float32.
        """


class ReadPrefix(Reader, Protocol):
    """What a language model keeps of the beginning of prompts, to read any number of them behind it."""

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""


class LanguageModel(Reader, Protocol):
    """A language model that can stand behind the Q-Former."""

    @property
    def config(self) -> LanguageConfig: ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] to embeddings [..., token width], to be joined with a visual prompt."""

    def read_prefix(self, embeds: Tensor) -> ReadPrefix | None:
        """Read the beginning [S, token width] of prompts that are to follow; None from a model that cannot share it."""

    def new_slots(self, texts: int) -> Slots | None:
        """What prompts with so many texts each can join at any time; None from a model whose batches have to be whole.

        For readings that join it, `read` leaves no room.
        """

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """States [B, L, ...] that predict each label, given the prompt and the labels before it, for `logits`.

        Args:
            prompts: [B, S, token width]; mask: [B, S] bool, False for padding, wherever it stands.
            labels: [B, L] ids; negative ones are ignored and may only stand behind a text.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., vocabulary] of such states."""


def push_together(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, T, width] (mask [B, T] bool, False for padding) with all padding behind, as long as the longest."""
    if not len(mask):
        return embeds, mask
    longest = int(mask.sum(dim=1).max())
    order = (~mask).byte().argsort(dim=1, stable=True)[:, :longest]
    return embeds.gather(1, order[:, :, None].expand(-1, -1, embeds.shape[2])), mask.gather(1, order)


def join_texts(prompts: Tensor, mask: Tensor | None, text: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Texts right behind their prompts, for a model in which a text goes on where its prompt ends.

    Args:
        prompts: [B, S, width]; mask: [B, S] bool, False for padding, wherever it stands.
        text: [B, L, width] text that is read; present: [B, L] bool, False for padding.

    Returns:
        embeddings [B, T, width] of both, padded behind; their mask [B, T] bool; the places [B, L + 1] of the last
        token of each prompt and of all tokens of its text, those of padding being any.
    """
    if mask is None:
        mask = present.new_ones(prompts.shape[:2])
    mask = mask.bool()
    embeds, joint_mask = push_together(torch.cat([prompts, text], dim=1), torch.cat([mask, present], dim=1))
    places = mask.sum(dim=1, keepdim=True) - 1 + torch.arange(present.shape[1] + 1, device=mask.device)
    return embeds, joint_mask, places.clamp(max=embeds.shape[1] - 1)
