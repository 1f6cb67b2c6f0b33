"""What a user holds: one object that captions, answers, matches and embeds, whatever family it is of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.devices import Placement
from openblip.errors import given_path
from openblip.generation.continuous import MOST_TEXTS, MOST_TOKENS
from openblip.images.encoded_image import EncodedImage, ImageCache, ImageInput
from openblip.models import answer_methods, judge_methods, matching_methods, text_methods
from openblip.models.abilities import Components, writer_of

if TYPE_CHECKING:
    from openblip.models.chat import Chat
    from openblip.models.decode_session import DecodeSession


class Model:
    """A loaded model. Make one with `openblip.load`.

    Images may be paths, http(s) addresses, bytes, open files, PIL images or arrays (see `openblip.load_image`), or what
    `encode_image` returned. One image gives one result; a list, a tuple, a generator or any other iterable of images
    gives a list. The same holds for questions, prompts and texts.

    An image that cannot be read raises ImageError, which names it. Methods whose names end in `_many` continue instead:
    they yield a result for every image, with its error if it has one. Methods that generate text take the options of
    `openblip.GenerationOptions` as keywords, and raise OptionError for wrong ones. A method that the model is not able
    to perform (see `abilities`) raises CheckpointError.

    Attributes:
        network: the module with the weights.
        abilities: what it can do: "caption", "ask", "chat", "match", "embed", "classify", "judge".
    """

    def __init__(self, parts: ModelParts, placement: Placement, components: Components) -> None:
        self.parts = parts
        self.placement = placement
        self.components = components
        self.network = parts.network
        self.abilities = components.abilities

    def __repr__(self) -> str:
        return f"Model({self.name!r}, family={self.family!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def name(self) -> str:
        """The name or folder that it was loaded from."""
        return self.parts.name

    @property
    def family(self) -> str:
        """The family it belongs to, such as "blip2". The models of a family are built alike."""
        return self.parts.family

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """The type in which it computes what is not quantized."""
        return self.placement.dtype

    @property
    def image_cache(self) -> ImageCache:
        """The images that were encoded last, within a limit of memory; `clear` it after you change weights."""
        return self.components.encoder.cache

    def encode_image(self, image: ImageInput) -> EncodedImage:
        """Encode an image once, to give it to any method any number of times."""
        return self.components.encoder.encode(image)

    caption = text_methods.caption
    caption_many = text_methods.caption_many
    ask = text_methods.ask
    ask_many = text_methods.ask_many
    generate = text_methods.generate
    rank_answers = answer_methods.rank_answers

    def chat(self, image: ImageInput) -> Chat:
        """Start a conversation about an image, which is encoded once."""
        from openblip.models.chat import Chat

        return Chat(writer_of(self, "chat"), self.encode_image(image))

    def decode_session(self, *, max_texts: int = MOST_TEXTS, max_tokens: int = MOST_TOKENS) -> DecodeSession:
        """Start a session in which captions and answers are written together although they are asked for at any time.

        For servers of your own: see `DecodeSession`.

        Args:
            max_texts: that are written together; beams and samples count one each.
            max_tokens: of prompts, images and texts together, as long as the texts may become. What alone needs more
                than either is written alone.

        Raises:
            CheckpointError: the model writes no text.
            OptionError: a limit is no whole number, or below 1.
        """
        from openblip.models.decode_session import DecodeSession

        return DecodeSession(self, max_texts=max_texts, max_tokens=max_tokens)

    match = matching_methods.match
    match_many = matching_methods.match_many
    scores = matching_methods.scores
    classify = matching_methods.classify
    classify_many = matching_methods.classify_many
    judge = judge_methods.judge
    judge_many = judge_methods.judge_many
    heatmap = matching_methods.heatmap
    rank_images = matching_methods.rank_images
    rank_texts = matching_methods.rank_texts
    rank_both = matching_methods.rank_both
    embed_images = matching_methods.embed_images
    embed_images_many = matching_methods.embed_images_many
    embed_texts = matching_methods.embed_texts

    def save(self, folder: str | Path, *, storage: Literal["float32", "float16", "int8"] = "float32") -> Path:
        """Write a folder that `openblip.load` reads.

        Args:
            folder: must be empty or not exist yet.
            storage: of what is not quantized in memory: "float32", "float16" or "int8".

        Raises:
            OptionError: there is something in the folder, an unknown storage, or adapters in the network.
        """
        path = given_path("the folder", folder)
        with new_folder(path) as place:
            save_native(self.parts, place, storage)
        return path
