"""LAVIS' BLIPs that write: captions and answers.

Where LAVIS fails, these do not: a question is answered as if it were alone in its batch, several captions of an image
differ, and a caption that does not begin with the prompt is learnt whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.lavis.blip import read_file, to_lavis
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.transformers.tokenizers import bert_words
from openblip.errors import CheckpointError, OptionError, given_path, whole_number
from openblip.generation.candidates import rank_candidates
from openblip.generation.engine import generate
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefix import Prefix
from openblip.integrations.lavis.models import TOP_K, LavisModel, listed_texts, pixels_of
from openblip.integrations.lavis.outputs import (
    BlipIntermediateOutput,
    BlipOutput,
    DecoderOutput,
    Samples,
)
from openblip.integrations.lavis.processors import (
    BlipCaptionProcessor,
    BlipImageTrainProcessor,
    BlipQuestionProcessor,
    TextProcessor,
)
from openblip.integrations.transformers.tokenizer import WordTokenizer
from openblip.models.blip import ImageBeside
from openblip.nn.bert import ImageMemory
from openblip.nn.bert_decoder import sequence_loss
from openblip.nn.blip import LABEL_SMOOTHING, BlipLanguageModel, BlipNetwork
from openblip.text import Tokenizer, pad_ids, text_list
from openblip.training.losses import IGNORED

LONGEST_CAPTION, LONGEST_TEXT = 40, 35
SAMPLING_PENALTY = 1.1
"""What LAVIS lowers repetitions by where it samples, whatever it is told."""


class BlipModel(LavisModel, ABC):
    """What BLIPs have in common; all of a BLIP is trained.

    Attributes:
        tokenizer: BERT's, called as transformers' is.
    """

    network: BlipNetwork
    image_training = BlipImageTrainProcessor
    task = ""

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int = LONGEST_TEXT) -> None:
        if parts.family != "blip" or not self.fits(parts):
            raise CheckpointError(f"{parts.name} cannot {self.task}: load it by its own architecture")
        super().__init__(parts, max_txt_len)
        words = parts.tokenizer if parts.matching is None else parts.matching.tokenizer
        assert words is not None  # a BLIP matches or writes
        text = self.network.config.encoder or self.network.config.decoder
        assert text is not None
        self.words: Tokenizer = words
        self.tokenizer = WordTokenizer(*bert_words(words, text.max_positions))

    @staticmethod
    @abstractmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        """Whether a BLIP can do what this class is for."""

    def checkpoint(self) -> dict[str, Tensor]:
        return to_lavis(self.network)

    def load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Take the weights of a file of LAVIS or of the original BLIP, for images of the model's own size.

        Raises:
            CheckpointError: the file is missing, broken or does not fit, or its images have another size.
        """
        found = self._read(url_or_filename)
        sides = [network.config.vision.image_size for network in (found, self.network)]
        if sides[0] != sides[1]:
            raise CheckpointError(
                f"{url_or_filename} is for images of {sides[0]} pixels, the model for {sides[1]}: load_from_pretrained "
                "fits it"
            )
        self.network.load_state_dict(found.state_dict())

    def load_from_pretrained(self, url_or_filename: str | Path) -> None:
        """As `load_checkpoint`, and positions of other images are interpolated: to train at another size.

        Raises:
            CheckpointError: the file is missing, broken or does not fit.
        """
        found = self._read(url_or_filename)
        if found.config.vision.image_size != self.network.config.vision.image_size:
            found.vision.resize(self.network.config.vision.image_size)
        self.network.load_state_dict(found.state_dict())

    def _read(self, file: str | Path) -> BlipNetwork:
        weight = next(self.parameters())
        options = ReadOptions(weight.dtype, weight.device)
        return read_file(self.network.config, given_path("the file", file), options)

    def image_features(self, samples: Samples) -> Tensor:
        """Patches [B, N, image width] of the samples' images, the class token's vector first."""
        return self.network.image_features(pixels_of(samples, self.device))

    def _batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_ids(rows, self.words.pad_id)
        return ids.to(self.device), mask.to(self.device)


class BlipWriter(BlipModel):
    """What BLIPs that write have in common."""

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int) -> None:
        super().__init__(parts, max_txt_len)
        self.language_model = self.network.language_model

    @property
    def stop_id(self) -> int:
        return self.parts.stop_id

    def _prompts(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor(self.parts.prompt_ids(text), device=self.device) for text in texts]

    def _prefixes(self, features: Tensor, model: BlipLanguageModel | None = None) -> list[Prefix]:
        return [ImageBeside(model or self.language_model, row) for row in features]

    def _text(self, found: Generation) -> str:
        return self.words.decode(found.ids).strip()


class BlipCaption(BlipWriter):
    """LAVIS' `blip_caption`.

    Attributes:
        prompt: what captions begin with; those that are returned do not repeat it.
    """

    task = "write captions"

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int = LONGEST_CAPTION) -> None:
        super().__init__(parts, max_txt_len)
        self.prompt = parts.prompts.caption

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return parts.tokenizer is not None and not parts.network.config.answers

    def text_processors(self) -> dict[str, TextProcessor]:
        return {"train": BlipCaptionProcessor(f"{self.prompt} "), "eval": BlipCaptionProcessor()}

    def forward(self, samples: Samples) -> BlipOutput:
        """The loss of `text_input`, captions that begin with the prompt, which is not learnt."""
        features = self.image_features(samples)
        texts = listed_texts(samples.get("text_input"), len(features), "text_input")
        rows = [self.words.encode(text)[: self.max_txt_len - 2] for text in texts]
        ids, mask = self._batch([[self.network.config.decode_id, *row, self.stop_id] for row in rows])
        prompt = self.words.encode(self.prompt)
        labels = ids.masked_fill(~mask, IGNORED)
        for row, own in zip(labels, rows, strict=True):
            row[: 1 + (len(prompt) if own[: len(prompt)] == prompt else 0)] = IGNORED
        decoder = self.network.decoder
        hidden = decoder.decode(decoder.embed(ids), mask, decoder.remember(features))
        logits = decoder.logits(hidden)
        loss = sequence_loss(logits, labels, LABEL_SMOOTHING).sum() / (labels[:, 1:] >= 0).sum().clamp(min=1)
        inner = BlipIntermediateOutput(features, decoder_output=DecoderOutput(loss, logits), decoder_labels=labels)
        return BlipOutput(loss, loss_lm=loss, intermediate_output=inner)

    @torch.no_grad()
    def generate(
        self,
        samples: Samples,
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float | None = None,
        num_captions: int = 1,
    ) -> list[str]:
        """`num_captions` captions of each image, one after the other; those of an image differ.

        Args:
            samples: `image`, and `prompt` to use another than the model's own: one for all, or one each.
            use_nucleus_sampling: draw at random (top-p, top-k 50) instead of searching with `num_beams`.
            max_length, min_length: in tokens; as in LAVIS, [DEC] and the prompt count, 4 tokens of "a picture of".
            repetition_penalty: by default 1 for a search, and 1.1 for sampling, as in LAVIS.

        Raises:
            OptionError: a value out of range, or `max_length` has no room behind a prompt.
        """
        features = self.image_features(samples)
        prompts = self._prompts(listed_texts(samples.get("prompt", self.prompt), len(features), "prompt"))
        longest = whole_number("max_length", max_length, 1)
        shortest = whole_number("min_length", min_length, 0)
        found: list[list[Generation]] = [[] for _ in prompts]
        # Lengths count the prompt, so those of another length are another batch.
        for count in dict.fromkeys(map(len, prompts)):
            if longest <= count:
                raise OptionError(
                    f"max_length is {longest} and [DEC] and the prompt are {count} tokens, which count: give more"
                )
            places = [place for place, prompt in enumerate(prompts) if len(prompt) == count]
            options = GenerationOptions(
                max_new_tokens=longest - count,
                min_new_tokens=min(max(0, shortest - count), longest - count),
                num_beams=1 if use_nucleus_sampling else max(num_beams, num_captions),
                num_return_sequences=num_captions,
                do_sample=use_nucleus_sampling,
                top_k=TOP_K if use_nucleus_sampling else 0,
                top_p=top_p if use_nucleus_sampling else 1.0,
                repetition_penalty=repetition_penalty or (SAMPLING_PENALTY if use_nucleus_sampling else 1.0),
                stop_ids=(self.stop_id,),
            )
            own = [prompts[place] for place in places]
            embeds = [self.language_model.embed(ids) for ids in own]
            written = generate(self.language_model, embeds, options, own, self._prefixes(features[places]))
            for place, texts in zip(places, written, strict=True):
                found[place] = texts
        return [self._text(one) for texts in found for one in texts]


class AsLavisReads(BlipLanguageModel):
    """A question's padding is read as if it were words, as in LAVIS' batches."""

    def __init__(self, network: BlipNetwork, mask: Tensor) -> None:
        super().__init__(network)
        self.mask = mask

    def answer_memory(self, prompts: Tensor, mask: Tensor | None, memory: ImageMemory) -> ImageMemory:
        return self.decoder.remember(self.network.encoder.encode(prompts, self.mask, memory))


class BlipVQA(BlipWriter):
    """LAVIS' `blip_vqa`."""

    task = "answer questions"

    def __init__(self, parts: ModelParts[BlipNetwork], max_txt_len: int = LONGEST_TEXT) -> None:
        super().__init__(parts, max_txt_len)

    @staticmethod
    def fits(parts: ModelParts[BlipNetwork]) -> bool:
        return parts.network.config.answers

    def text_processors(self) -> dict[str, TextProcessor]:
        return {"train": BlipQuestionProcessor(), "eval": BlipQuestionProcessor()}

    def forward(self, samples: Samples) -> BlipOutput:
        """The loss of `answer` to `text_input`: of each image its weighted sum, and the mean of these.

        `answer` has all answers, those of the first image first; `n_answers` says how many each image has, and
        `weight` what each counts: 1 of each by default.
        """
        features = self.image_features(samples)
        questions = listed_texts(samples.get("text_input"), len(features), "text_input")
        counts = torch.as_tensor(samples.get("n_answers", [1] * len(features)), device=self.device)
        total = int(counts.sum())
        answers = listed_texts(samples.get("answer"), None, "answer")
        weights = torch.as_tensor(samples.get("weight", [1.0] * total), device=self.device)
        if len(counts) != len(features) or len(answers) != total or len(weights) != total:
            raise OptionError(
                f'"n_answers" says {counts.tolist()} for {len(features)} images, and there are {len(answers)} answers '
                f"with {len(weights)} weights: give each image a number, and as many answers and weights"
            )
        room = self.max_txt_len - 2
        start = self.network.config.encode_id
        asked = [[start, *self.words.encode(question)[:room], self.stop_id] for question in questions]
        ids, mask = self._batch(asked)
        told, present = self._batch([[*self.words.encode(answer), self.stop_id] for answer in answers])
        model = self.language_model
        memory = model.answer_memory(model.embed(ids), mask, model.remember(features))
        rows = torch.arange(len(features), device=self.device).repeat_interleave(counts)
        labels = told.masked_fill(~present, IGNORED)
        logits = model.logits(model.hidden_of_answers(labels, memory.take(rows)))
        whole = F.pad(labels, (1, 0), value=self.network.config.decode_id)
        losses = sequence_loss(F.pad(logits, (0, 0, 0, 1)), whole, LABEL_SMOOTHING)
        loss = (weights * losses).sum() / len(features)
        inner = BlipIntermediateOutput(features, decoder_output=DecoderOutput(losses, logits), decoder_labels=whole)
        return BlipOutput(loss, intermediate_output=inner)

    @torch.no_grad()
    def predict_answers(
        self,
        samples: Samples,
        num_beams: int = 3,
        inference_method: Literal["rank", "generate"] | None = None,
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        prompt: str = "",
        read_padding: bool = False,
    ) -> list[str]:
        """An answer to the question in `text_input` for each image.

        Args:
            inference_method: "rank" chooses from `answer_list`, "generate" writes. By default there is a choice where
                there is a list.
            max_len, min_len: of an answer that is written, in tokens; as in LAVIS, [DEC] counts.
            num_ans_candidates: answers that are read whole: those that begin likeliest.
            prompt: what the question is put into, as in "{}?".
            read_padding: what is written depends on the padding of shorter questions in a batch, as in LAVIS.

        Raises:
            OptionError: another method, no list to choose from, or a value out of range.
        """
        method = inference_method or ("generate" if answer_list is None else "rank")
        if method not in ("rank", "generate"):
            raise OptionError(f"inference_method is {method!r}: use rank or generate")
        features = self.image_features(samples)
        questions = listed_texts(samples.get("text_input"), len(features), "text_input")
        ids = self._prompts([prompt.format(question) if prompt else question for question in questions])
        if method == "rank":
            if not answer_list:
                raise OptionError("there is nothing to choose from: give answer_list, or inference_method='generate'")
            return self._rank(features, ids, text_list(answer_list, "answer_list"), num_ans_candidates)
        longest = whole_number("max_len", max_len, 2)
        options = GenerationOptions(
            max_new_tokens=longest - 1,
            min_new_tokens=min(max(0, whole_number("min_len", min_len, 0) - 1), longest - 1),
            num_beams=num_beams,
            stop_ids=(self.stop_id,),
        )
        model = self.language_model
        if read_padding:
            padded, mask = self._batch([row.tolist() for row in ids])
            model, ids = AsLavisReads(self.network, mask), list(padded)
        embeds = [model.embed(row) for row in ids]
        written = generate(model, embeds, options, None, self._prefixes(features, model))
        return [self._text(best) for best, *_ in written]

    def _rank(self, features: Tensor, ids: list[Tensor], answers: list[str], first: int) -> list[str]:
        model = self.language_model
        offered = [[*self.words.encode(answer), self.stop_id] for answer in answers]
        embeds = [model.embed(row) for row in ids]
        first = whole_number("num_ans_candidates", first, 1)
        ranked = rank_candidates(model, embeds, offered, self._prefixes(features), first)
        return [answers[best.index] for best, *_ in ranked]
