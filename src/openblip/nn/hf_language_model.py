"""A language model of transformers, read as one of ours; this room takes the model object and imports PyTorch alone.

Such a model is external: it is no part of PyTorch's tree of modules. So no checkpoint copies its weights, no optimizer
finds them, and no cast of the network reaches its rotary frequencies, which have to stay float32. Whoever loads it
freezes it and puts it on its device.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from openblip.nn.language_model import Reading, join_texts, push_together


@dataclass(frozen=True)
class ExternalConfig:
    """See `openblip.nn.language_model.LanguageConfig`."""

    vocab_size: int
    token_width: int
    max_positions: int | None
    encodes_prompts: bool = False
    start_ids: tuple[int, ...] = ()
    kind: ClassVar[str] = "external"
    is_external: ClassVar[bool] = True
    prompt_start_ids: ClassVar[tuple[int, ...]] = ()
    prompt_counts: ClassVar[bool] = False
    label_smoothing: ClassVar[float] = 0.0


class ExternalDecoder:
    """Any model of AutoModelForCausalLM that reads embeddings and keeps keys and values.

    Heads differ in scales and caps, so states are not told from scores: `hidden_before` gives scores already.
    """

    def __init__(self, model: Any, config: ExternalConfig) -> None:
        self.model = model
        self.config = config
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_count = "logits_to_keep" in accepted

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[Reading, Tensor]:
        reading = DecoderReading(self, mask, texts)
        scores = reading.read(prompts)
        if texts > 1:
            reading.take_rows(_repeated(prompts, texts))
        return reading, scores

    def read_prefix(self, embeds: Tensor) -> None:
        """Caches of transformers hold a row for every text: there is nothing to share."""
        return None

    def new_slots(self, texts: int) -> None:
        """Rows of such a cache all have the same length: batches are whole."""
        return None

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        before = labels[:, :-1]
        text = self.embed(before.clamp(min=0)).to(prompts)
        embeds, joint_mask, places = join_texts(prompts, mask, text, before >= 0)
        first = int(places.min())
        scores: Tensor = self.run(embeds, joint_mask, None, embeds.shape[1] - first, use_cache=False).logits
        # A model that cannot be asked for the last scores alone gives all.
        skipped = embeds.shape[1] - scores.shape[1]
        return scores.gather(1, (places - skipped)[:, :, None].expand(-1, -1, scores.shape[2]))

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def run(self, embeds: Tensor, mask: Tensor | None, cache: Any, scored: int, use_cache: bool) -> Any:
        """Read embeddings [R, T, width]; mask [R, all tokens so far]. Only the last `scored` need scores."""
        options: dict[str, Any] = {}
        if self.takes_positions and mask is not None:
            # Positions skip padding; without any, every model counts them so by itself.
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -embeds.shape[1] :]
        if self.takes_count:
            options["logits_to_keep"] = scored
        visible = None if mask is None else mask.long()
        return self.model(
            inputs_embeds=embeds, attention_mask=visible, past_key_values=cache, use_cache=use_cache, **options
        )


class DecoderReading:
    """Prompts and texts in one cache of transformers, which has a row for each text: `texts` a prompt."""

    def __init__(self, decoder: ExternalDecoder, mask: Tensor | None, texts: int) -> None:
        self.decoder = decoder
        self.mask = mask
        self.texts = texts
        self.cache: Any = None

    def read(self, embeds: Tensor) -> Tensor:
        found = self.decoder.run(embeds, self.mask, self.cache, 1, use_cache=True)
        self.cache = found.past_key_values
        scores: Tensor = found.logits[:, -1].float()
        return scores

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        if parents is not None:
            # Texts of one prompt share their mask.
            rows = _rows_of(parents, torch.arange(len(parents), device=parents.device), self.texts)
            self.cache.reorder_cache(rows)
            self.mask = None if self.mask is None else self.mask[rows]
            self.texts = parents.shape[1]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(tokens.numel(), 1)], dim=1)
        return self.read(self.decoder.embed(tokens.reshape(-1, 1))).view(*tokens.shape, -1)

    def take_prompts(self, rows: Tensor) -> None:
        self.take_rows(_rows_of(torch.arange(self.texts, device=rows.device).expand(len(rows), -1), rows, self.texts))

    def take_rows(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask = None if self.mask is None else self.mask[rows]


class ExternalSeq2Seq:
    """Any model of AutoModelForSeq2SeqLM whose encoder reads embeddings; `hidden_before` gives scores already."""

    def __init__(self, model: Any, config: ExternalConfig) -> None:
        self.model = model
        self.config = config

    def embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[Reading, Tensor]:
        reading = Seq2SeqReading(self.model, *self.encode(prompts, mask), texts)
        scores = reading.read(self._start(len(prompts), prompts.device))
        if texts > 1:
            reading.take_rows(_repeated(prompts, texts))
        return reading, scores

    def read_prefix(self, embeds: Tensor) -> None:
        """As with T5."""
        return None

    def new_slots(self, texts: int) -> None:
        """As of `ExternalDecoder`."""
        return None

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        start = self._start(len(prompts), prompts.device)
        ids = torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)
        encoded, encoder_mask = self.encode(prompts, mask)
        scores: Tensor = self.model(
            encoder_outputs=encoded, attention_mask=encoder_mask, decoder_input_ids=ids, use_cache=False
        ).logits
        return scores[:, start.shape[1] - 1 :]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def encode(self, prompts: Tensor, mask: Tensor | None) -> tuple[Any, Tensor | None]:
        """What the encoder makes of prompts, and its mask, as the model takes both."""
        encoder_mask = None
        if mask is not None:
            # BART's kin count positions from the first column, padding or not: it has to stand behind.
            prompts, mask = push_together(prompts, mask.bool())
            encoder_mask = mask.long()
        return self.model.get_encoder()(
            inputs_embeds=prompts, attention_mask=encoder_mask, return_dict=True
        ), encoder_mask

    def _start(self, rows: int, device: torch.device) -> Tensor:
        return torch.tensor([self.config.start_ids] * rows, device=device)


class Seq2SeqReading:
    """Encoded prompts, and the texts behind the start in a cache of transformers; both have a row for each text."""

    def __init__(self, model: Any, encoded: Any, mask: Tensor | None, texts: int) -> None:
        self.model = model
        self.encoded = encoded
        self.mask = mask
        self.texts = texts
        self.cache: Any = None

    def read(self, tokens: Tensor) -> Tensor:
        """Ids [R, T] of the texts."""
        found = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=tokens,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = found.past_key_values
        scores: Tensor = found.logits[:, -1].float()
        return scores

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        if parents is not None:
            rows = _rows_of(parents, torch.arange(len(parents), device=parents.device), self.texts)
            if parents.shape[1] == self.texts:  # texts of one prompt share what was encoded
                self.cache.self_attention_cache.reorder_cache(rows)
            else:
                self.take_rows(rows)
                self.texts = parents.shape[1]
        return self.read(tokens.reshape(-1, 1)).view(*tokens.shape, -1)

    def take_prompts(self, rows: Tensor) -> None:
        self.take_rows(_rows_of(torch.arange(self.texts, device=rows.device).expand(len(rows), -1), rows, self.texts))

    def take_rows(self, rows: Tensor) -> None:
        self.encoded = type(self.encoded)(last_hidden_state=self.encoded.last_hidden_state[rows])
        self.mask = None if self.mask is None else self.mask[rows]
        self.cache.reorder_cache(rows)


ExternalLanguageModel: TypeAlias = ExternalDecoder | ExternalSeq2Seq


def _repeated(prompts: Tensor, texts: int) -> Tensor:
    """[P * texts] indices: each of P prompts as often as it has texts."""
    return torch.arange(len(prompts), device=prompts.device).repeat_interleave(texts)


def _rows_of(places: Tensor, prompts: Tensor, texts: int) -> Tensor:
    """[P * B] rows of texts that stand at places [P, B] among so many texts of each of prompts [P]."""
    return (prompts[:, None] * texts + places).flatten()
