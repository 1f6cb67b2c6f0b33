"""BLIP-2 as LAVIS' scripts call it: the same methods, samples and length rules over OpenBLIP's network.

Where LAVIS fails, these do not: captions of different lengths can be matched in one batch, every image may have a
prompt of its own, and a loss needs no process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.lavis.write import to_lavis
from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import CheckpointError, OptionError
from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.integrations.lavis.outputs import BlipOutput, BlipOutputFeatures, Loss, Samples
from openblip.integrations.lavis.processors import Blip2ImageTrainProcessor, BlipCaptionProcessor, TextProcessor
from openblip.nn.blip2 import Blip2Network, itc_similarity
from openblip.text import MatchingText, Tokenizer, pad_ids
from openblip.training.losses import IGNORED, Pairing, TextBatch, stage1_loss, stage2_loss, stage2_t5_loss

TOP_K = 50
"""transformers' default, which LAVIS' nucleus sampling inherits."""


class LavisModel(nn.Module):
    """What all have: a network, and which of its parts are never trained.

    Attributes:
        parts, network: what was loaded; max_txt_len: where texts are cut that are matched or learnt.
        image_training: what makes training images.
    """

    network: Any
    image_training: type[Blip2ImageTrainProcessor] = Blip2ImageTrainProcessor

    def __init__(self, parts: ModelParts[Any, Any], max_txt_len: int = 32) -> None:
        super().__init__()
        self.parts = parts
        self.network = parts.network
        self.max_txt_len = max_txt_len
        self.network.requires_grad_(True)
        for module in self.frozen():
            module.requires_grad_(False)

    def frozen(self) -> list[nn.Module]:
        """The parts that are never trained."""
        return []

    def train(self, mode: bool = True) -> LavisModel:
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def checkpoint(self) -> dict[str, Tensor]:
        """What LAVIS' runner saves, by LAVIS' names. Raises CheckpointError when LAVIS has no such model."""
        raise CheckpointError(
            f"LAVIS has no checkpoints of a {type(self).__name__}: save it with openblip.load(...).save"
        )

    def text_processors(self) -> dict[str, TextProcessor]:
        """What LAVIS cleans the model's texts with, under "train" and "eval"."""
        return {"train": BlipCaptionProcessor(), "eval": BlipCaptionProcessor()}


def pixels_of(samples: Samples, device: torch.device) -> Tensor:
    """The samples' images. Raises OptionError when they have none."""
    if "image" not in samples:
        raise OptionError('the samples have no "image": give pixels [B, 3, S, S] as vis_processors["eval"] makes them')
    return samples["image"].to(device)


class Blip2Model(LavisModel):
    """What BLIP-2s have: a frozen image encoder, and the Q-Former's look at an image."""

    network: Blip2Network

    def frozen(self) -> list[nn.Module]:
        return [self.network.vision]

    def checkpoint(self) -> dict[str, Tensor]:
        return to_lavis(self.network.state_dict(), self.network.config).checkpoint

    def image_features(self, samples: Samples) -> Tensor:
        """Normalized patches [B, N, image width] of the samples' images."""
        with torch.no_grad():
            patches = self.network.vision(pixels_of(samples, self.device))
        return self.network.normalize(patches)


class Blip2Writer(Blip2Model):
    """Captions and answers from a frozen language model."""

    def __init__(self, parts: ModelParts, max_txt_len: int = 32) -> None:
        if parts.tokenizer is None:
            raise CheckpointError(f"{parts.name} has no language model: use blip2_feature_extractor for it")
        if parts.external is not None:
            raise CheckpointError(
                f"{parts.name} has an external language model, which LAVIS cannot use: use openblip.load"
            )
        super().__init__(parts, max_txt_len)
        self.tokenizer: Tokenizer = parts.tokenizer
        self.prompt = parts.prompts.caption
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)

    def frozen(self) -> list[nn.Module]:
        return [self.network.vision, self.network.own_language_model]

    @property
    def is_t5(self) -> bool:
        return self.network.language_model.config.encodes_prompts

    def forward(self, samples: Samples) -> Loss:
        """The stage-2 loss: `text_input` is learnt (OPT), or read so that `text_output` is learnt (T5)."""
        features = self.image_features(samples)
        texts = listed_texts(samples.get("text_input"), len(features), "text_input")
        if self.is_t5:
            targets = listed_texts(samples.get("text_output"), len(features), "text_output")
            ids, mask = self._batch([self._text_ids(text) for text in texts])
            wanted, present = self._batch([self._text_ids(text) for text in targets])
            labels = wanted.masked_fill(~present, IGNORED)
            return {"loss": stage2_t5_loss(self.network, features, TextBatch(ids, mask), labels)}
        rows = [self._text_ids(text + "\n") for text in texts]
        ids, mask = self._batch(rows)
        labels = ids.masked_fill(~mask, IGNORED)
        if self.prompt:
            labels[:, : len(self._text_ids(self.prompt))] = IGNORED
        return {"loss": stage2_loss(self.network, features, TextBatch(ids, mask), labels)}

    @torch.no_grad()
    def generate(
        self,
        samples: Samples,
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 30,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
    ) -> list[str]:
        """`num_captions` texts for each image, one after the other.

        Args:
            samples: `image`, and `prompt` to use another than the model's own: one for all, or one each.
            use_nucleus_sampling: draw at random (top-p, top-k 50) instead of searching with `num_beams`.
            max_length, min_length: in tokens without the prompt. As in LAVIS, OPT's start token counts in both
                (30 means 29 words), T5's in `min_length` alone.
        """
        features = self.image_features(samples)
        prompts = listed_texts(samples.get("prompt", self.prompt), len(features), "prompt")
        options = GenerationOptions(
            max_new_tokens=max_length if self.is_t5 else max(1, max_length - 1),
            min_new_tokens=max(0, min_length - 1),
            num_beams=1 if use_nucleus_sampling else num_beams,
            length_penalty=length_penalty,
            num_return_sequences=num_captions,
            do_sample=use_nucleus_sampling,
            temperature=temperature,
            top_k=TOP_K if use_nucleus_sampling else 0,
            top_p=top_p if use_nucleus_sampling else 1.0,
            repetition_penalty=repetition_penalty,
            stop_ids=(self.stop_id,),
        )
        return self._write(features, prompts, options)

    @torch.no_grad()
    def predict_answers(
        self,
        samples: Samples,
        num_beams: int = 5,
        inference_method: Literal["generate"] = "generate",
        max_len: int = 10,
        min_len: int = 1,
        prompt: str = "",
        length_penalty: float | None = None,
    ) -> list[str]:
        """An answer to the question in `text_input` for each image.

        Args:
            prompt: what the question is put into, as in "Question: {} Short answer:".
            length_penalty: None is LAVIS' own: 0 for OPT, -1 for T5.

        Raises:
            OptionError: another inference method; LAVIS' BLIP-2 has none either.
        """
        if inference_method != "generate":
            raise OptionError(f"inference_method is {inference_method!r}: BLIP-2 answers by 'generate' alone")
        features = self.image_features(samples)
        questions = listed_texts(samples.get("text_input"), len(features), "text_input")
        if length_penalty is None:
            length_penalty = -1.0 if self.is_t5 else 0.0
        options = GenerationOptions(
            max_new_tokens=max_len,
            min_new_tokens=max(0, min_len - 1),
            num_beams=num_beams,
            length_penalty=length_penalty,
            stop_ids=(self.stop_id,),
        )
        prompts = [prompt.format(question) if prompt else question for question in questions]
        return self._write(features, prompts, options)

    def _write(self, features: Tensor, prompts: Sequence[str], options: GenerationOptions) -> list[str]:
        language_model = self.network.language_model
        rows = []
        for visual, prompt in zip(self.network.visual_prompt(features), prompts, strict=True):
            # Never cut: a chat that lost its last question would be answered all the same.
            ids = torch.tensor(self.parts.prompt_ids(prompt), device=self.device)
            rows.append(torch.cat([visual, language_model.embed(ids).to(visual)]))
        found = generate(language_model, rows, options)
        return [self.tokenizer.decode(text.ids).strip() for texts in found for text in texts]

    def _text_ids(self, text: str) -> list[int]:
        """A text to learn, cut, as the language model's own tokenizer wraps it: OPT's begin with </s>, T5's end so."""
        ids = self.tokenizer.encode(text)
        if self.is_t5:
            return [*ids[: self.max_txt_len - 1], self.stop_id]
        return [self.tokenizer.start_id, *ids][: self.max_txt_len]

    def _batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_ids(rows, self.tokenizer.pad_id)
        return ids.to(self.device), mask.to(self.device)


class Blip2OPT(Blip2Writer):
    """LAVIS' `blip2_opt`."""


class Blip2T5(Blip2Writer):
    """LAVIS' `blip2_t5`."""


class Blip2Stage1(Blip2Model):
    """Features of images and texts, as every stage-1 model of LAVIS gives them."""

    def __init__(self, parts: ModelParts, max_txt_len: int = 32) -> None:
        if parts.matching is None:
            raise CheckpointError(f"{parts.name} has no text side: load a stage-1 checkpoint for features and matching")
        super().__init__(parts, max_txt_len)
        self.tokenizer = parts.matching.tokenizer
        self.cut = MatchingText(self.tokenizer, max_txt_len)
        # LAVIS' extract_features cuts nothing.
        self.whole = MatchingText(self.tokenizer, self.network.config.qformer.max_positions)

    @torch.no_grad()
    def extract_features(
        self, samples: Samples, mode: Literal["image", "text", "multimodal"] = "multimodal"
    ) -> BlipOutputFeatures:
        """Features of images, of texts, or of images with their texts.

        Raises:
            OptionError: another mode, or the samples lack what the mode needs.
        """
        network = self.network
        if mode == "image":
            queries = network.qformer.image(self.image_features(samples))
            return BlipOutputFeatures(image_embeds=queries, image_embeds_proj=network.project_queries(queries))
        if mode == "text":
            ids, mask = self._texts(self.whole, samples, None)
            hidden = network.qformer.text(ids, mask)
            projected = F.normalize(network.text_projection(hidden), dim=-1)
            return BlipOutputFeatures(text_embeds=hidden, text_embeds_proj=projected)
        if mode == "multimodal":
            features = self.image_features(samples)
            ids, mask = self._texts(self.whole, samples, len(features))
            joint = network.qformer.joint(ids, mask, features)
            return BlipOutputFeatures(multimodal_embeds=joint[:, : network.config.qformer.num_queries])
        raise OptionError(f"mode is {mode!r}: use image, text or multimodal")

    def _texts(self, words: MatchingText, samples: Samples, count: int | None) -> tuple[Tensor, Tensor]:
        ids, mask = words.batch(listed_texts(samples.get("text_input"), count, "text_input"))
        return ids.to(self.device), mask.to(self.device)


class Blip2Qformer(Blip2Stage1):
    """LAVIS' `blip2` and `blip2_feature_extractor`."""

    def forward(self, samples: Samples) -> BlipOutput:
        """The three losses of stage 1; `image_id` tells which texts describe one image."""
        features = self.image_features(samples)
        ids, mask = self._texts(self.cut, samples, len(features))
        start = self.cut.decoder_start_id
        pairing = Pairing(image_ids=samples.get("image_id"))
        loss = stage1_loss(self.network, features, TextBatch(ids, mask), start, pairing)
        return BlipOutput(loss.total, loss.itc, loss.itm, loss.itg)


class Blip2ITM(Blip2Stage1):
    """LAVIS' `blip2_image_text_matching`: how well each text fits its image."""

    def forward(self, samples: Samples, match_head: Literal["itm", "itc"] = "itm") -> Tensor:
        """ITM logits [B, 2], of which index 1 is yes, or ITC cosines [B, 1].

        Raises:
            OptionError: another head.
        """
        features = self.image_features(samples)
        ids, mask = self._texts(self.cut, samples, len(features))
        if match_head == "itm":
            return self.network.itm_logits(ids, mask, features)
        if match_head == "itc":
            images = self.network.project_queries(self.network.qformer.image(features))
            texts = self.network.project_text(self.network.qformer.text(ids, mask))
            return itc_similarity(images, texts).diagonal()[:, None]
        raise OptionError(f"match_head is {match_head!r}: use itm or itc")


def listed_texts(values: str | Sequence[str] | None, count: int | None, name: str) -> list[str]:
    """One text for each of `count` images; a lone one serves all.

    Raises:
        OptionError: none was given, or another number of them.
    """
    if values is None:
        raise OptionError(f'the samples have no "{name}": give a text for each image')
    texts = [values] * (count or 1) if isinstance(values, str) else list(values)
    if count is not None and len(texts) != count:
        raise OptionError(f'"{name}" has {len(texts)} texts for {count} images: give one each')
    return texts
