"""transformers' BLIP-2 models with a language model: `Blip2ForConditionalGeneration` and `Blip2Model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.names.transformers import tied
from openblip.checkpoints.transformers.config import WordIds as FolderIds
from openblip.errors import CheckpointError, OptionError
from openblip.integrations.transformers.folders import LoadedModel
from openblip.integrations.transformers.generating import Prompts, counts_words, stop_of, write_behind
from openblip.integrations.transformers.options import (
    CallOptions,
    GenerateOptions,
    GenerationSettings,
    check_tensor,
    engine_options,
    merged_options,
    tuple_wanted,
)
from openblip.integrations.transformers.outputs import FeatureOutput, WritingOutput
from openblip.integrations.transformers.pretrained import Pretrained, blip2_naming
from openblip.nn.opt import Opt
from openblip.nn.t5 import T5
from openblip.training.losses import IGNORED

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Writer(Pretrained):
    """An image and a prompt to scores of the text behind them."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        if loaded.words is None:
            raise CheckpointError(f"{loaded.parts.name} has no language model: load it with Blip2ForImageTextRetrieval")
        if loaded.parts.external is not None:
            raise CheckpointError(
                f"{loaded.parts.name} has an external language model, which transformers' BLIP-2 "
                "cannot use: use openblip.load"
            )
        network = loaded.parts.network
        self.words = loaded.words
        self.word_ids = FolderIds(loaded.words.start, loaded.words.pad, loaded.words.stop, loaded.words.image)
        self.generation_config = GenerationSettings()
        self.language_projection = network.prompt_projection
        self.language_model: Opt | T5 = network.own_language_model
        language = network.config.own_language
        self.translate(blip2_naming("" if language is None else language.prefix, tied(network.config)))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **others: Unpack[CallOptions],
    ) -> Any:
        """Scores of each next token, and the loss of `labels`: a `WritingOutput`, or with return_dict=False a tuple.

        Args:
            input_ids: [B, T], an image's place being held by image tokens, as the processor puts them; ids without
                any have the image in front of them.
            attention_mask: [B, T], 0 for padding.
            decoder_input_ids: what T5 has said so far; by default what comes before each label.
            decoder_attention_mask: [B, L], 0 for padding, which may only stand behind a text.
            labels: OPT: [B, L], ids to predict at the last L places, each from the one before; T5: [B, L], what is
                to be said. -100 is left out.
            others: see `CallOptions`.

        Raises:
            OptionError: another keyword, another number of image tokens than of queries, too many tokens, or T5
                without labels or decoder_input_ids.
        """
        as_tuple = tuple_wanted("the model", others)
        _refuse_padding_in_front(decoder_attention_mask)
        vision, queries = self._query(pixel_values, interpolate_pos_encoding)
        embeds, mask = self._read(self._prompt(vision, queries), input_ids, attention_mask)
        if labels is not None:
            check_tensor("labels", labels, 2)
            if len(labels) != len(embeds):
                raise OptionError(f"{len(embeds)} texts came with {len(labels)} rows of labels: give each its own")
        language, t5 = self.language_model, self.seq2seq
        loss: Tensor | None = None
        if t5 is not None:
            logits = self._t5_logits(t5, embeds, mask, decoder_input_ids, labels)
            if labels is not None:
                # The batch's own mean in any case, as there: `num_items_in_batch` does not reach its T5.
                targets = labels.to(logits.device)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        else:
            limit = cast(Opt, language).config.max_positions
            if embeds.shape[1] > limit:
                raise OptionError(f"{embeds.shape[1]} tokens exceed the model's {limit} positions: shorten the text")
            logits = language.logits(cast(Opt, language)(embeds, mask))
            if labels is not None:
                logits = logits[:, -labels.shape[1] :]
                loss = _next_token_loss(logits, labels.to(logits.device), others.get("num_items_in_batch"))
        found = WritingOutput(loss=loss, logits=logits, vision_outputs=vision, qformer_outputs=queries)
        return found.to_tuple() if as_tuple else found

    @property
    def seq2seq(self) -> T5 | None:
        """The language model where it encodes prompts."""
        return cast(T5, self.language_model) if self.language_model.config.encodes_prompts else None

    def can_generate(self) -> bool:
        return True

    def get_input_embeddings(self) -> torch.nn.Module:
        """The table of the language model's words."""
        table: torch.nn.Module = self.language_model.tokens
        return table

    def get_output_embeddings(self) -> torch.nn.Module:
        """What makes scores of hidden states: with OPT the table of words."""
        head: torch.nn.Module | None = getattr(self.language_model, "head", None)
        return self.get_input_embeddings() if head is None else head

    def prepare_inputs_for_generation(self, **inputs: Any) -> dict[str, Any]:
        """What peft asks of a model that writes; `generate` here takes its inputs as they are."""
        return inputs

    def _prompt(self, vision: FeatureOutput, queries: FeatureOutput) -> Tensor:
        """What the language model reads of images: [B, Q, token width]."""
        prompt: Tensor = self.language_projection(queries.last_hidden_state.to(vision.last_hidden_state.dtype))
        return prompt

    def _read(self, visual: Tensor, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Visual prompts [B, Q, token width] in their places among the words of ids [B, T].

        Returns:
            embeddings [B, T or Q + T, token width], and a mask as long, None when all of it counts.
        """
        check_tensor("input_ids", ids, 2)
        if mask is not None:
            check_tensor("attention_mask", mask, 2)
            if mask.shape != ids.shape:
                shapes = f"attention_mask is {list(mask.shape)}, input_ids are {list(ids.shape)}"
                raise OptionError(f"{shapes}: give a mask of the ids' shape")
        if len(ids) != len(visual):
            raise OptionError(f"{len(visual)} images came with {len(ids)} texts: give each image its text")
        ids = ids.to(visual.device)
        places = ids == self.words.image
        counts = places.sum(dim=1)
        text_ids = ids.masked_fill(places, self.words.pad)
        words = self.language_model.embed(text_ids).to(visual.dtype)
        if words.requires_grad and not self.language_model.config.encodes_prompts:
            # OPT's padding learns nothing by being read, as in transformers; T5's does.
            words = torch.where((text_ids == self.words.pad)[:, :, None], words.detach(), words)
        mask = torch.ones_like(places) if mask is None else mask.to(visual.device).bool()
        if not counts.any():
            words = torch.cat([visual, words], dim=1)
            mask = F.pad(mask, (visual.shape[1], 0), value=True)
        elif (counts != visual.shape[1]).any():
            raise OptionError(
                f"a text has {int(counts.min())} image tokens, the model {visual.shape[1]} queries: "
                "make the inputs with the processor of this model"
            )
        else:
            words = words.masked_scatter(places[:, :, None], visual)
        return words, None if mask.all() else mask

    def _t5_logits(
        self, t5: T5, embeds: Tensor, mask: Tensor | None, spoken: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        if spoken is not None:
            memory = t5.remember(t5.encode(embeds, mask), mask)
            return t5.logits(t5(t5.embed(spoken.to(embeds.device)).to(embeds), memory))
        if labels is None:
            raise OptionError("T5 says a text of its own: give labels, or decoder_input_ids, or call generate")
        return t5.logits(t5.hidden_before(embeds, mask, labels.to(embeds.device)))


class Blip2ForConditionalGeneration(Writer):
    """Captions and answers."""

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> FeatureOutput:
        """What each part sees of images; `pooler_output` is the visual prompt [B, Q, token width]."""
        vision, queries = self._query(pixel_values, interpolate_pos_encoding)
        prompt = self._prompt(vision, queries)
        return FeatureOutput(
            last_hidden_state=vision.last_hidden_state,
            pooler_output=prompt,
            vision_outputs=vision,
            qformer_outputs=queries,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **keywords: Unpack[GenerateOptions],
    ) -> Any:
        """Ids [B * num_return_sequences, length], padded behind the token that ends a text.

        With OPT they begin with `input_ids` as given, or with the image tokens and the start token; with T5 with its
        start token. Padding among `input_ids` is left out when they are read, wherever it stands.

        Raises:
            OptionError: a keyword of transformers that means nothing here, a value out of range, a length that the
                prompt fills, more tokens than the model has positions.
        """
        options = merged_options(keywords, self.generation_config)
        vision, queries = self._query(pixel_values, interpolate_pos_encoding)
        visual = self._prompt(vision, queries)
        ids = self._start(visual) if input_ids is None else input_ids
        embeds, mask = self._read(visual, ids, attention_mask)
        ids = ids.to(visual.device)
        rows = list(embeds) if mask is None else [row[kept] for row, kept in zip(embeds, mask, strict=True)]
        stop = stop_of(options, self.words.stop)
        language, t5 = self.language_model, self.seq2seq
        if t5 is not None:
            front = ids.new_full((len(ids), 1), t5.config.start_id)
            chosen = engine_options(options, 1, None, stop)
            used = None
        else:
            front = ids
            opt = cast(Opt, language)
            chosen = engine_options(options, ids.shape[1], opt.config.max_positions - embeds.shape[1], stop)
            used = self._used(opt, ids, attention_mask) if counts_words(chosen) else None
        return write_behind(Prompts(language, rows, front, used), chosen, options, self.words.pad)

    def _start(self, visual: Tensor) -> Tensor:
        """Ids of an image without a prompt: its tokens, and the one that begins a text."""
        ids = [*[self.words.image] * visual.shape[1], self.words.start]
        return torch.tensor([ids] * len(visual), device=visual.device)

    def _used(self, decoder: Opt, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Ids that count as repeated: all of a prompt behind the padding in front; -1 for an image's tokens."""
        starts = [0] * len(ids) if mask is None else mask.bool().int().argmax(dim=1).tolist()
        rows = [row[start:] for row, start in zip(ids, starts, strict=True)]
        return [row.masked_fill(row >= decoder.config.vocab_size, -1) for row in rows]


class Blip2Model(Writer):
    """Features of every part."""

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> FeatureOutput:
        """Normalized patches [B, N, image width]; `pooler_output` [B, image width] is the class token's."""
        vision: FeatureOutput = self.vision_model(pixel_values, interpolate_pos_encoding)
        return vision

    def get_qformer_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """What the queries see of images: [B, Q, width]."""
        queries: Tensor = self._query(pixel_values, interpolate_pos_encoding)[1].last_hidden_state
        return queries

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> FeatureOutput:
        """The language model's hidden states of a text alone [B, T, width]; of T5 its encoder's."""
        language = self.language_model
        embeds = language.embed(input_ids.to(self.device))
        mask = None if attention_mask is None else attention_mask.to(self.device)
        hidden = self.seq2seq.encode(embeds, mask) if self.seq2seq is not None else cast(Opt, language)(embeds, mask)
        return FeatureOutput(last_hidden_state=hidden)


def _next_token_loss(logits: Tensor, labels: Tensor, counted: Tensor | int | None) -> Tensor:
    """Cross-entropy of each token given those before it: logits [B, L, V], labels [B, L].

    Args:
        counted: labels of all batches that one step accumulates, over which the mean is taken; None for this one's.
    """
    targets = labels[:, 1:].flatten()
    scores = logits[:, :-1].flatten(0, 1).float()
    if counted is None:
        return F.cross_entropy(scores, targets, ignore_index=IGNORED)
    whole = counted.to(scores.device) if isinstance(counted, Tensor) else counted
    return F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum") / whole


def _refuse_padding_in_front(mask: Tensor | None) -> None:
    """Raises OptionError for a mask [B, L] in which something is hidden in front of what is seen."""
    if mask is not None and bool((mask[:, 1:].bool() & ~mask[:, :-1].bool()).any()):
        raise OptionError("decoder_attention_mask hides tokens in front of others: pad what T5 says behind it")
