"""transformers' `CLIPModel` and `CLIPProcessor`: features of images and texts, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self, Unpack

from openblip.checkpoints.clip_models import FAMILY
from openblip.checkpoints.lavis.clip import ClipParts
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.clip import TRANSFORMERS, TRANSFORMERS_ROOTS
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.writing import write_together
from openblip.checkpoints.transformers.clip import clip_config, clip_image_files, save_clip_folder
from openblip.checkpoints.transformers.tokenizers import clip_files
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform, centre_crop, normalize
from openblip.integrations.transformers.config import ModelConfig, config_content
from openblip.integrations.transformers.folders import find_folder, read_family
from openblip.integrations.transformers.names import Naming
from openblip.integrations.transformers.options import (
    CallOptions,
    LoadOptions,
    refuse_unknown,
    tuple_wanted,
)
from openblip.integrations.transformers.outputs import BatchFeature, ModelOutput
from openblip.integrations.transformers.processor import Images, ImageTextProcessor, listed_images, loaded_image
from openblip.integrations.transformers.tokenizer import WordTokenizer, check_tensors
from openblip.integrations.transformers.training import Trainable
from openblip.nn.clip import ClipNetwork
from openblip.text import CLIP_END, CLIP_START, ClipText

LEGACY_END = 2
"""What the config of OpenAI's folders calls the id that ends a text; their texts end at the largest id."""


BELOW = {
    "vision_model.": "vision.",
    "text_model.": "text.",
    "visual_projection": "image_projection",
    "logit_scale": "log_scale",
}
"""How names below the model begin, and those of the network."""
WORD_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What a config says of words, for a model without a vocabulary."""


class CLIPFeatures(ModelOutput):
    """Vectors of images or of texts, of any length.

    Attributes:
        pooler_output: [B, shared width].
    """

    pooler_output: Tensor


class CLIPOutput(ModelOutput):
    """Images against texts.

    Attributes:
        loss: CLIP's contrastive loss; None unless it was asked for.
        logits_per_image: scaled cosines [I, T]; logits_per_text: [T, I].
        text_embeds, image_embeds: unit vectors [T, shared width] and [I, shared width].
    """

    loss: Tensor | None
    logits_per_image: Tensor
    logits_per_text: Tensor
    text_embeds: Tensor
    image_embeds: Tensor


class CLIPModel(Trainable):
    """transformers' CLIPModel over OpenBLIP's network.

    Its layers go by transformers' names, so that peft finds its targets.

    Attributes:
        config: config.json.
        name_or_path: what it was loaded by.
        vision_model, text_model: the two encoders, as OpenBLIP has them.
    """

    main_input_name = "input_ids"

    def __init__(self, parts: ClipParts, config: dict[str, Any]) -> None:
        super().__init__()
        self.parts = parts
        self.config = ModelConfig(config)
        self.name_or_path = parts.name
        network = parts.network
        self.vision_model, self.text_model = network.vision, network.text
        self.visual_projection = network.image_projection
        self.text_projection = network.text_projection
        self.logit_scale = network.log_scale
        self.translate(Naming(BELOW, TRANSFORMERS.sources, TRANSFORMERS_ROOTS))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Unpack[LoadOptions]) -> Self:
        """The model of a name or folder, in evaluation mode; missing files of a repository are downloaded.

        Raises:
            CheckpointError: no such model, one of another family, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: a keyword of transformers that means nothing here.
        """
        parts, content = read_family(pretrained_model_name_or_path, options, "clip", "CLIP")
        model = cls(parts, content or {"model_type": "clip"}).eval()
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def from_config(cls, config: object) -> Self:
        """A new model of the sizes of a config, with random weights, to be trained.

        Args:
            config: a CLIPConfig of transformers, what config.json says as a dictionary, or a folder's or file's path.

        Raises:
            CheckpointError: it describes no such model.
            OptionError: it is no config.
        """
        content = {**config_content(config), "architectures": [cls.__name__]}
        sizes = clip_config(content, Path("config"))
        transform = ImageTransform(sizes.vision.image_size, crop=True)
        return cls(ModelParts(cls.__name__, ClipNetwork(sizes), transform, None, None, family=FAMILY), content)

    @property
    def network(self) -> ClipNetwork:
        return self.parts.network

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.text_model.words
        return table

    def get_image_features(self, pixel_values: Tensor, **others: Unpack[CallOptions]) -> Any:
        """Pixels [B, 3, S, S] to vectors of the shared space, under `pooler_output`.

        Raises:
            OptionError: another keyword, such as one for states or attention of single layers, which are not kept.
        """
        as_tuple = tuple_wanted("get_image_features", others)
        found = CLIPFeatures(pooler_output=self._image_vectors(pixel_values))
        return found.to_tuple() if as_tuple else found

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Unpack[CallOptions]
    ) -> Any:
        """Ids [B, L] to vectors of the shared space, under `pooler_output`; what stands behind an end is not seen.

        Raises:
            OptionError: as of `get_image_features`.
        """
        as_tuple = tuple_wanted("get_text_features", others)
        found = CLIPFeatures(pooler_output=self._text_vectors(input_ids))
        return found.to_tuple() if as_tuple else found

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        **others: Unpack[CallOptions],
    ) -> Any:
        """Images against texts: a `CLIPOutput`, or with return_dict=False a tuple.

        Raises:
            OptionError: as of `get_image_features`.
        """
        as_tuple = tuple_wanted("the model", others)
        images = F.normalize(self._image_vectors(pixel_values), dim=-1)
        texts = F.normalize(self._text_vectors(input_ids), dim=-1)
        logits = self.network.contrast(images, texts)
        loss: Tensor | None = None
        if return_loss:
            right = torch.arange(len(logits), device=logits.device)
            loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        found = CLIPOutput(
            loss=loss, logits_per_image=logits, logits_per_text=logits.T, text_embeds=texts, image_embeds=images
        )
        return found.to_tuple() if as_tuple else found

    def _write(self, folder: Path, shard_bytes: int, state: Mapping[str, Tensor] | None) -> None:
        text = self.config.get("text_config") or {}
        named = {name: text.get(name) for name in WORD_IDS}
        told = {name: value for name, value in named.items() if value is not None}
        save_clip_folder(self.parts, folder, None, shard_bytes, state, told)

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        # By its own projections, in whose places peft puts others.
        pooled = self.vision_model.class_vector(pixels.to(self.device, self.dtype))
        return pooled if self.visual_projection is None else self.visual_projection(pooled)

    def _text_vectors(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.device)
        vectors: Tensor = self.text_projection(self.text_model(ids, self._up_to_ends(ids)))
        return vectors

    def _up_to_ends(self, ids: Tensor) -> Tensor:
        """True up to the first end of each text, as transformers finds it."""
        text = self.config.get("text_config") or {}
        end = text.get("eos_token_id", LEGACY_END)
        ends = ids.argmax(dim=1) if end == LEGACY_END else (ids == end).int().argmax(dim=1)
        return torch.arange(ids.shape[1], device=ids.device)[None] <= ends[:, None]


class CLIPImageProcessor:
    """The middle of images, normalized, bit for bit as transformers does it with Pillow."""

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    @property
    def size(self) -> dict[str, int]:
        return {"shortest_edge": self.transform.image_size}

    @property
    def crop_size(self) -> dict[str, int]:
        return {"height": self.transform.image_size, "width": self.transform.image_size}

    def __call__(self, images: Images, *, return_tensors: str | None = None, **others: object) -> BatchFeature:
        """`pixel_values` [B, 3, S, S].

        Raises:
            ImageError: one of them cannot be read, named by its path or place.
            OptionError: another keyword.
        """
        refuse_unknown("the image processor", others)
        check_tensors(return_tensors)
        side = self.transform.image_size
        middles = [centre_crop(loaded_image(image), side, math.floor) for image in listed_images(images)]
        pixels = normalize(middles, self.transform)
        return BatchFeature(pixel_values=pixels if return_tensors == "pt" else list(pixels.numpy()))


class CLIPProcessor(ImageTextProcessor):
    """Image processor and tokenizer in one."""

    image_processor: CLIPImageProcessor

    def __init__(self, image_processor: CLIPImageProcessor, tokenizer: WordTokenizer, words: ClipText) -> None:
        super().__init__(image_processor, tokenizer)
        self.words = words

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_fast: bool | None = None,
        **others: object,
    ) -> Self:
        """The processor of a model, by its name or folder. `use_fast` changes nothing: there is one kind.

        Raises:
            CheckpointError: no such model, one of another family, or its files are broken.
            DownloadError: its files cannot be had.
            OptionError: another keyword.
        """
        refuse_unknown("from_pretrained of a processor", others)
        folder = find_folder(pretrained_model_name_or_path, revision, cache_dir, local_files_only, "", token)
        parts: Any = load_parts(folder, ReadOptions(left_out=("",)))
        if not isinstance(parts.matching, ClipText):
            raise CheckpointError(f"{pretrained_model_name_or_path} is of the family {parts.family}, no CLIP")
        fast = parts.matching.tokenizer.fast
        if fast.post_processor is None:
            from tokenizers import processors

            ends = ((CLIP_END, parts.matching.end_id), (CLIP_START, parts.matching.tokenizer.start_id))
            fast.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
        names = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END}
        tokenizer = WordTokenizer(fast, {**names, "model_max_length": parts.matching.max_tokens})
        return cls(CLIPImageProcessor(parts.transform), tokenizer, parts.matching)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the files that `from_pretrained` of transformers' CLIPProcessor reads."""
        longest = self.words.max_tokens
        files = clip_image_files(self.image_processor.transform) | clip_files(self.words, longest)
        write_together(Path(save_directory), files, {})
