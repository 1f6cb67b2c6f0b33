"""transformers' BLIP models: `BlipForConditionalGeneration`, `BlipForQuestionAnswering`, `BlipForImageTextRetrieval`.

Where transformers is right, which is wherever a batch has no padding, results are its own. Padding never changes any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import OptionError
from openblip.integrations.transformers.blip_pretrained import BlipPretrained
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
from openblip.integrations.transformers.outputs import (
    BlipAnswerOutput,
    BlipCaptionOutput,
    BlipMatchingOutput,
    FeatureOutput,
)
from openblip.models.blip import ImageBeside
from openblip.nn.blip import BlipNetwork
from openblip.training.losses import IGNORED

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BlipForConditionalGeneration(BlipPretrained):
    """Captions."""

    def __init__(self, parts: ModelParts[BlipNetwork], content: Mapping[str, Any] | None = None) -> None:
        super().__init__(parts, content)
        self.generation_config = GenerationSettings()
        self.text_decoder = parts.network.decoder
        self.name_layers()

    def can_generate(self) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.text_decoder.words
        return table

    def get_output_embeddings(self) -> nn.Module:
        return self.get_input_embeddings()

    def prepare_inputs_for_generation(self, **inputs: Any) -> dict[str, Any]:
        """What peft asks of a model that writes; `generate` here takes its inputs as they are."""
        return inputs

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        logits_to_keep: int = 0,
        **others: Unpack[CallOptions],
    ) -> Any:
        """Scores of each next token, and the loss of `labels`: a `BlipCaptionOutput`, or a tuple.

        Args:
            input_ids: [B, L]; attention_mask: [B, L], 0 for padding, wherever it stands.
            labels: [B, L], of which each is predicted by the place before it; -100 is left out.
            logits_to_keep: so many of the last places have logits; 0 for all.
            others: see `CallOptions`.

        Raises:
            OptionError: another keyword, or a text that is too long.
        """
        as_tuple = tuple_wanted("the model", others)
        decoder = self.text_decoder
        ids, mask = self._texts(input_ids, attention_mask, decoder.config.max_positions)
        vision: FeatureOutput = self.vision_model(pixel_values, interpolate_pos_encoding)
        features = vision.last_hidden_state
        _check_pairs(features, ids)
        hidden = decoder.decode(self._embed(decoder, ids), mask, decoder.remember(features))
        logits = decoder.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None if labels is None else _word_loss(logits, labels, self.words.label_smoothing)
        found = BlipCaptionOutput(loss=loss, logits=logits, image_embeds=features, last_hidden_state=features)
        return found.to_tuple() if as_tuple else found

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | Sequence[Sequence[int]] | None = None,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **keywords: Unpack[GenerateOptions],
    ) -> Any:
        """Ids [B * num_return_sequences, length]: prompts, and the texts behind them.

        As there, a prompt loses its last token, [SEP], and its first becomes [DEC], though not in `input_ids`. Prompts
        of different length may stand in a batch; what is returned has padding in front of the shorter ones.

        Raises:
            OptionError: a keyword of transformers that means nothing here, a value out of range, a length that the
                prompt fills, more tokens than the model has positions.
        """
        options = merged_options(keywords, self.generation_config)
        features = self.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        network, decoder = self.parts.network, self.text_decoder
        start = network.config.decode_id
        if input_ids is None:
            rows = [torch.tensor([start], device=self.device)] * len(features)
            width = 1
        else:
            ids, mask = self._texts(input_ids, attention_mask, decoder.config.max_positions)
            _check_pairs(features, ids)
            words = list(ids) if mask is None else [row[kept] for row, kept in zip(ids, mask, strict=True)]
            if min(map(len, words)) < 2:
                raise OptionError("a prompt has fewer than 2 tokens: make input_ids with the model's processor")
            rows = [torch.cat([row.new_tensor([start]), row[1:-1]]) for row in words]
            width = ids.shape[1] - 1
        front = torch.stack([F.pad(row, (width - len(row), 0), value=self.words.pad) for row in rows])
        language = network.language_model
        room = language.config.max_positions - max(map(len, rows))
        chosen = engine_options(options, width, room, stop_of(options, self.words.stop))
        embeds = [language.embed(row) for row in rows]
        images = [ImageBeside(language, row) for row in features]
        prompts = Prompts(language, embeds, front, rows if counts_words(chosen) else None, images)
        return write_behind(prompts, chosen, options, self.words.pad)


class BlipForQuestionAnswering(BlipPretrained):
    """Answers to questions."""

    main_input_name = "input_ids"

    def __init__(self, parts: ModelParts[BlipNetwork], content: Mapping[str, Any] | None = None) -> None:
        super().__init__(parts, content)
        self.generation_config = GenerationSettings()
        self.text_encoder = parts.network.encoder
        self.text_decoder = parts.network.decoder
        self.name_layers()

    def can_generate(self) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.text_encoder.words
        return table

    def prepare_inputs_for_generation(self, **inputs: Any) -> dict[str, Any]:
        """What peft asks of a model that writes; `generate` here takes its inputs as they are."""
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **others: Unpack[CallOptions],
    ) -> Any:
        """The loss of `labels`: a `BlipAnswerOutput`, or a tuple.

        Args:
            input_ids: questions [B, L]; attention_mask: [B, L], 0 for padding.
            labels: answers [B, M], of which each token but the first is predicted by those before it. As there, padding
                counts in the loss; -100, which fails there, is left out.
            decoder_input_ids: what is read of answers; by default the labels. decoder_attention_mask: [B, M].
            others: see `CallOptions`.

        Raises:
            OptionError: another keyword, no answers, or a text that is too long.
        """
        as_tuple = tuple_wanted("the model", others)
        if labels is None and decoder_input_ids is None:
            raise OptionError("there are no answers: give labels, or decoder_input_ids, or call generate")
        network, decoder = self.parts.network, self.text_decoder
        ids, mask = self._texts(input_ids, attention_mask, self.text_encoder.config.max_positions)
        vision: FeatureOutput = self.vision_model(pixel_values, interpolate_pos_encoding)
        features = vision.last_hidden_state
        _check_pairs(features, ids)
        loss: Tensor | None = None
        if labels is not None:
            read = labels if decoder_input_ids is None else decoder_input_ids
            read = read.to(self.device).masked_fill(read.to(self.device) < 0, self.words.pad)
            read, seen = self._texts(read, decoder_attention_mask, decoder.config.max_positions)
            memory = self.text_encoder.remember(features)
            asked = network.language_model.answer_memory(self._embed(self.text_encoder, ids), mask, memory)
            logits = decoder.logits(decoder.decode(self._embed(decoder, read), seen, asked))
            loss = _word_loss(logits, labels, self.words.label_smoothing)
        found = BlipAnswerOutput(loss=loss, image_embeds=features, last_hidden_state=features)
        return found.to_tuple() if as_tuple else found

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **keywords: Unpack[GenerateOptions],
    ) -> Any:
        """Ids [B * num_return_sequences, length] of answers, [DEC] first; padding of questions changes none.

        Raises:
            OptionError: as of `BlipForConditionalGeneration`.
        """
        options = merged_options(keywords, self.generation_config)
        features = self.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        ids, mask = self._texts(input_ids, attention_mask, self.text_encoder.config.max_positions)
        _check_pairs(features, ids)
        language = self.parts.network.language_model
        rows = list(ids) if mask is None else [row[kept] for row, kept in zip(ids, mask, strict=True)]
        front = ids.new_full((len(ids), 1), self.parts.network.config.decode_id)
        room = self.text_decoder.config.max_positions - 1
        chosen = engine_options(options, 1, room, stop_of(options, self.words.stop))
        embeds = [language.embed(row) for row in rows]
        images = [ImageBeside(language, row) for row in features]
        return write_behind(Prompts(language, embeds, front, None, images), chosen, options, self.words.pad)


class BlipForImageTextRetrieval(BlipPretrained):
    """Image-text matching (ITM), of pairs, and contrast (ITC), of all images with all texts."""

    main_input_name = "input_ids"

    def __init__(self, parts: ModelParts[BlipNetwork], content: Mapping[str, Any] | None = None) -> None:
        super().__init__(parts, content)
        network = parts.network
        self.text_encoder = network.encoder
        self.vision_proj, self.text_proj = network.image_projection, network.text_projection
        self.itm_head = network.itm_head
        self.name_layers()

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.text_encoder.words
        return table

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool = True,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **others: Unpack[CallOptions],
    ) -> Any:
        """ITM logits [B, 2] of each image with its text, index 1 is yes; or ITC cosines [images, texts].

        A `BlipMatchingOutput`, or with return_dict=False a tuple. Texts begin with [CLS] as the processor makes them;
        LAVIS reads [ENC] there for ITM, and so does `openblip.load`.

        Args:
            input_ids: [B, L]; several texts may come with one image. attention_mask: [B, L], 0 for padding.

        Raises:
            OptionError: another keyword, images and texts that make no pairs, or a text that is too long.
        """
        as_tuple = tuple_wanted("the model", others)
        encoder = self.text_encoder
        ids, mask = self._texts(input_ids, attention_mask, encoder.config.max_positions)
        vision: FeatureOutput = self.vision_model(pixel_values, interpolate_pos_encoding)
        features = vision.last_hidden_state
        embeds = self._embed(encoder, ids)
        if use_itm_head:
            _check_pairs(features, ids)
            hidden = encoder.encode(embeds, mask, encoder.remember(features))
            scores = self.itm_head(hidden[:, 0])
        else:
            hidden = encoder.encode(embeds, mask)
            images = F.normalize(self.vision_proj(features[:, 0]), dim=-1)
            scores = images @ F.normalize(self.text_proj(hidden[:, 0]), dim=-1).t()
        found = BlipMatchingOutput(itm_score=scores, last_hidden_state=features, question_embeds=hidden)
        return found.to_tuple() if as_tuple else found


def _check_pairs(features: Tensor, ids: Tensor) -> None:
    """Raises OptionError for texts that cannot be shared out among images."""
    if len(ids) != len(features) and len(features) != 1:
        raise OptionError(f"{len(features)} images came with {len(ids)} texts: give each image its text")


def _word_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The mean over all labels [B, L] but the first of each row, which logits [B, L, V] predict from the place before.

    The batch's own mean in any case, as there: `num_items_in_batch` does not reach it.
    """
    check_tensor("labels", labels, 2)
    if labels.shape != logits.shape[:2]:
        raise OptionError(f"labels are {list(labels.shape)}, the texts {list(logits.shape[:2])}: give a label a token")
    targets = labels[:, 1:].flatten().to(logits.device)
    scores = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(scores, targets, ignore_index=IGNORED, label_smoothing=smoothing)
