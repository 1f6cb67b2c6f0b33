"""transformers' processors of BLIP-2: images to pixels, prompts to ids with an image's place in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from openblip.checkpoints.json_files import to_json
from openblip.checkpoints.tensors.writing import write_together
from openblip.checkpoints.transformers.config import PROCESSOR_FILE
from openblip.checkpoints.transformers.write import image_files
from openblip.errors import OptionError, given_path, whole_number
from openblip.images.decode import load_image
from openblip.images.sources import ImageSource
from openblip.images.transform import ImageTransform, to_pixels
from openblip.integrations.transformers.folders import find_folder
from openblip.integrations.transformers.options import refuse_unknown
from openblip.integrations.transformers.outputs import BatchFeature
from openblip.integrations.transformers.processor_folders import read_bert_processor, read_processor
from openblip.integrations.transformers.tokenizer import (
    Blip2Tokenizer,
    Ids,
    Padding,
    Truncation,
    WordTokenizer,
    as_tensor,
    check_tensors,
)

Images = Any
"""A PIL image, path, address, array or tensor, or a list of these."""


class BlipImageProcessor:
    """Images squashed to the model's square and normalized, bit for bit as transformers does it with Pillow."""

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    @property
    def size(self) -> dict[str, int]:
        return {"height": self.transform.image_size, "width": self.transform.image_size}

    @property
    def image_mean(self) -> list[float]:
        return list(self.transform.mean)

    @property
    def image_std(self) -> list[float]:
        return list(self.transform.std)

    def __call__(self, images: Images, *, return_tensors: str | None = None, **others: object) -> BatchFeature:
        """`pixel_values` [B, 3, S, S].

        Arrays and tensors may have their channels first or last, in 8 bits or as fractions from 0 to 1.

        Raises:
            ImageError: one of them cannot be read, named by its path or place.
            OptionError: another keyword.
        """
        refuse_unknown("the image processor", others)
        check_tensors(return_tensors)
        pixels = to_pixels([loaded_image(image) for image in listed_images(images)], self.transform)
        return BatchFeature(pixel_values=pixels if return_tensors == "pt" else list(pixels.numpy()))

    def save_pretrained(self, save_directory: str | Path) -> None:
        write_together(given_path("save_directory", save_directory), image_files(self.transform), {})


class Blip2Processor:
    """Image processor and tokenizer in one.

    Attributes:
        num_query_tokens: image tokens in front of every prompt that comes with an image; None for none.
    """

    def __init__(
        self, image_processor: BlipImageProcessor, tokenizer: Blip2Tokenizer, num_query_tokens: int | None = None
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.num_query_tokens = num_query_tokens

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        token: str | bool | None = None,
        use_fast: bool | None = None,
        trust_remote_code: bool | None = None,
        **others: object,
    ) -> Blip2Processor:
        """The processor of a model, by its name or folder.

        `use_fast` and `trust_remote_code` change nothing: there is one kind, and no code of a model is ever run.

        Raises:
            CheckpointError: no such model, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: another keyword.
        """
        refuse_unknown("from_pretrained of a processor", others)
        name = pretrained_model_name_or_path
        folder = find_folder(name, revision, cache_dir, local_files_only, subfolder, token)
        parts = read_processor(folder)
        return cls(BlipImageProcessor(parts.transform), parts.tokenizer, parts.queries)

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
        **others: object,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` of texts, `pixel_values` of images; text keywords as for the tokenizer.

        Args:
            max_length: image tokens and text together.

        Raises:
            ImageError: an image cannot be read.
            OptionError: neither images nor text, another keyword, or texts of different lengths without `padding`.
        """
        refuse_unknown("the processor", others)
        if images is None and text is None:
            raise OptionError("the processor got neither images nor text: give one of them, or both")
        inputs = BatchFeature()
        if text is not None:
            queries = 0 if self.num_query_tokens is None else self.num_query_tokens
            words = self.tokenizer(
                [text] if isinstance(text, str) else text,
                padding=padding,
                truncation=truncation,
                max_length=None if max_length is None else whole_number("max_length", max_length, 1) - queries,
                add_special_tokens=add_special_tokens,
                padding_side=padding_side,
            )
            shown = queries if images is not None else 0
            fronts = {"input_ids": [self.tokenizer.image_token_id] * shown, "attention_mask": [1] * shown}
            for name, rows in words.items():
                whole = [fronts[name] + row for row in rows]
                inputs[name] = as_tensor(name, whole) if return_tensors == "pt" else whole
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors))
        return inputs

    def decode(self, token_ids: Ids, skip_special_tokens: bool = False) -> Any:
        """The text of ids, or a list of texts of rows of ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Ids] | Tensor, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens)

    def post_process_image_text_to_text(self, generated_outputs: Ids, skip_special_tokens: bool = True) -> Any:
        """As `decode`: what transformers' pipelines call it."""
        return self.decode(generated_outputs, skip_special_tokens)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what `from_pretrained`, here and in transformers, makes the same processor of."""
        content = {"processor_class": "Blip2Processor", "num_query_tokens": self.num_query_tokens}
        files = {
            **self.tokenizer.files(),
            **image_files(self.image_processor.transform),
            PROCESSOR_FILE: to_json(content),
        }
        write_together(given_path("save_directory", save_directory), files, {})


class MakesPixels(Protocol):
    """An image processor."""

    @property
    def transform(self) -> ImageTransform: ...
    def __call__(self, images: Images, *, return_tensors: str | None = None) -> BatchFeature: ...


class ImageTextProcessor:
    """Image processor and tokenizer in one, each for itself."""

    image_processor: MakesPixels

    def __init__(self, image_processor: MakesPixels, tokenizer: WordTokenizer) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **others: object,
    ) -> BatchFeature:
        """`pixel_values` of images, `input_ids` and `attention_mask` of texts.

        Raises:
            ImageError: an image cannot be read.
            OptionError: neither images nor text, another keyword, or tensors of texts of different lengths without
                `padding`.
        """
        refuse_unknown("the processor", others)
        if images is None and text is None:
            raise OptionError("the processor got neither images nor text: give one of them, or both")
        found = BatchFeature()
        if images is not None:
            found.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            words = self.tokenizer(
                text,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                add_special_tokens=add_special_tokens,
                return_tensors=return_tensors,
            )
            found.update(words)
        return found

    def decode(self, token_ids: Ids, skip_special_tokens: bool = False) -> Any:
        """The text of ids, or a list of texts of rows of ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Ids] | Tensor, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens)

    def post_process_image_text_to_text(self, generated_outputs: Ids, skip_special_tokens: bool = True) -> Any:
        """As `decode`: what transformers' pipelines call it."""
        return self.decode(generated_outputs, skip_special_tokens)


class BlipProcessor(ImageTextProcessor):
    """The image processor and BERT's tokenizer, as transformers' BlipProcessor."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        token: str | bool | None = None,
        use_fast: bool | None = None,
        trust_remote_code: bool | None = None,
        **others: object,
    ) -> BlipProcessor:
        """The processor of a model, by its name or folder; see `Blip2Processor.from_pretrained`."""
        refuse_unknown("from_pretrained of a processor", others)
        name = pretrained_model_name_or_path
        transform, words = read_bert_processor(
            find_folder(name, revision, cache_dir, local_files_only, subfolder, token)
        )
        return cls(BlipImageProcessor(transform), words)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what `from_pretrained`, here and in transformers, makes the same processor of."""
        files = {
            **self.tokenizer.files(),
            **image_files(self.image_processor.transform, "BlipProcessor"),
            PROCESSOR_FILE: to_json({"processor_class": "BlipProcessor"}),
        }
        write_together(given_path("save_directory", save_directory), files, {})


class _Array(Protocol):
    ndim: int
    shape: tuple[int, ...]


def listed_images(images: Images) -> list[Images]:
    """Lists of lists are taken apart, and so are batches [B, ...] of arrays or tensors."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in listed_images(part)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def loaded_image(image: Images) -> Any:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if getattr(image, "ndim", 0) == 3 and _channels_first(image):
        image = image.transpose(1, 2, 0)
    return load_image(cast(ImageSource, image))


def _channels_first(array: _Array) -> bool:
    return array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
