"""How BLIP learns to write (https://arxiv.org/abs/2201.12086): captions after a prompt, and answers to questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import CheckpointError, OptionError
from openblip.nn.bert import ImageMemory
from openblip.nn.blip import LABEL_SMOOTHING, BlipLanguageModel, BlipNetwork
from openblip.text import pad_ids
from openblip.training.input.batches import BatchRow
from openblip.training.input.targets import choose_caption, choose_people_or_made
from openblip.training.losses import IGNORED
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.task import Runtime, Task, Views

RETRIES = 3
"""How often to choose again when a caption of an image was already chosen."""


class CaptionTask(Task):
    """Next-token loss of captions after the model's prompt; the prompt itself has no loss."""

    network: BlipNetwork
    loss_names = ("lm",)
    usual_tokens = 40

    def __init__(self, parts: ModelParts[BlipNetwork, Any], recipe: Recipe, runtime: Runtime) -> None:
        """Raises OpenBlipError for a model that does not caption."""
        super().__init__(parts, recipe, runtime)
        self.model = language_model_of(parts, answers=False)
        self.text_tokens = min(self.text_tokens, self.model.config.max_positions)
        self.prompt = parts.prompt_ids(parts.prompts.caption)
        if len(self.prompt) + 2 > self.text_tokens:
            raise OptionError(
                f"text_tokens is {self.text_tokens}, and the prompt has {len(self.prompt)}: a caption has to fit, too"
            )

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [*self.seen_parts(), self.network.decoder]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        words, room = self.parts.require_words(), self.text_tokens - len(self.prompt) - 1
        captions = [caption for row in batch for caption in self._captions(row)]
        labels = padded_labels([[*words.encode(caption)[:room], self.parts.stop_id] for caption in captions])
        labels = labels.to(self.runtime.device)
        patches = self.patches(views)
        with self.runtime.arithmetic.quickly():
            prompts = self.model.embed(labels.new_tensor(self.prompt))[None].expand(len(labels), -1, -1)
            hidden = self.model.hidden_before(prompts, None, labels, self.model.remember(patches))
            total = smoothed_loss(self.model, hidden, labels)
        return {"lm": self.runtime.world.mean(total, (labels != IGNORED).sum())}

    def _captions(self, row: BatchRow) -> list[str]:
        chosen: list[str] = []
        for _ in range(self.recipe.texts_per_image):
            caption = choose_caption(row.pair, self.recipe.mixture, row.rng)
            for _ in range(RETRIES if caption in chosen else 0):
                caption = choose_caption(row.pair, self.recipe.mixture, row.rng)
            chosen.append(caption)
        return chosen


class AnswerTask(Task):
    """Loss of answers to questions about images: each answer is weighted by how many people gave it."""

    network: BlipNetwork
    loss_names = ("lm",)
    usual_tokens = 35

    def __init__(self, parts: ModelParts[BlipNetwork, Any], recipe: Recipe, runtime: Runtime) -> None:
        """Raises OpenBlipError for a model that does not answer questions."""
        super().__init__(parts, recipe, runtime)
        self.model = language_model_of(parts, answers=True)
        self.text_tokens = min(self.text_tokens, self.model.config.max_positions)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [*self.seen_parts(), self.network.encoder, self.network.decoder]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        parts, device = self.parts, self.runtime.device
        words, room = parts.require_words(), self.model.config.max_positions - 1
        questions: list[list[int]] = []
        answers: list[list[int]] = []
        owners: list[int] = []
        shares: list[float] = []
        for row in batch:
            for _ in range(self.recipe.texts_per_image):
                question = choose_people_or_made(row.pair, self.recipe.mixture, row.rng)
                *start, stop = parts.prompt_ids(parts.prompts.ask(question.question))
                counts = Counter(question.answers or (question.answer,))
                for answer, count in counts.items():
                    answers.append([*words.encode(answer)[:room], parts.stop_id])
                    owners.append(len(questions))
                    shares.append(count / counts.total())
                questions.append([*start[: self.text_tokens - 1], stop])
        ids, mask = (tensor.to(device) for tensor in pad_ids(questions, words.pad_id))
        labels = padded_labels(answers).to(device)
        patches = self.patches(views)
        with self.runtime.arithmetic.quickly():
            asked = self._read(ids, mask, self.model.remember(patches))
            hidden = self.model.hidden_of_answers(labels, asked.take(torch.tensor(owners, device=device)))
            total = smoothed_loss(self.model, hidden, labels, torch.tensor(shares, device=device))
        return {"lm": self.runtime.world.mean(total, len(questions))}

    def _read(self, ids: Tensor, mask: Tensor, memory: ImageMemory) -> ImageMemory:
        """Questions encoded with their images, for the decoder's cross-attention; padding is masked."""
        return self.model.answer_memory(self.model.embed(ids), mask, memory)


def language_model_of(parts: ModelParts[BlipNetwork, Any], answers: bool) -> BlipLanguageModel:
    """The language model of a BLIP.

    Args:
        answers: whether it has to answer questions, rather than to caption.

    Raises:
        CheckpointError: it has none.
        OptionError: it captions where it has to answer, or the other way round.
    """
    if parts.network.config.language is None:
        raise CheckpointError(f"{parts.name} cannot write: this stage needs a BLIP that captions or answers")
    model = parts.network.language_model
    if model.config.encodes_prompts != answers:
        does, stage = ("captions", "caption") if answers else ("answers questions", "vqa")
        raise OptionError(f"{parts.name} {does}: train it with stage {stage}, or give another model")
    return model


def padded_labels(texts: Sequence[Sequence[int]]) -> Tensor:
    """Ids of texts as labels [B, L], IGNORED after the end of each."""
    ids, mask = pad_ids([list(text) for text in texts], 0)
    return ids.masked_fill(~mask, IGNORED)


def smoothed_loss(model: BlipLanguageModel, hidden: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
    """The label-smoothed cross-entropy of texts, summed over their tokens.

    Args:
        hidden: [B, L, width] before each token; labels: [B, L], IGNORED after the end of a text.
        shares: [B], the weight of each text; None: 1 each.
    """
    wanted = labels != IGNORED
    losses = F.cross_entropy(
        model.logits(hidden[wanted]).float(), labels[wanted], reduction="none", label_smoothing=LABEL_SMOOTHING
    )
    if shares is not None:
        losses = losses * shares[wanted.nonzero()[:, 0]]
    return losses.sum()
