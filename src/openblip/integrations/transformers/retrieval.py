"""transformers' `Blip2ForImageTextRetrieval`: how well texts fit images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import CheckpointError, OptionError
from openblip.integrations.transformers.folders import LoadedModel
from openblip.integrations.transformers.options import tuple_wanted
from openblip.integrations.transformers.outputs import FeatureOutput, MatchingOutput, ProjectionOutput
from openblip.integrations.transformers.pretrained import Pretrained, blip2_naming


class Matching(Pretrained):
    """The Q-Former with its text side."""

    task = "match"

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        if loaded.parts.matching is None:
            raise CheckpointError(f"{loaded.parts.name} has no text side: load it with Blip2ForConditionalGeneration")
        if loaded.words is not None:
            # Its processor makes ids of the language model's words, which the Q-Former would read as others.
            raise CheckpointError(
                f"{loaded.parts.name} also writes, which no matcher of transformers does: use openblip.load"
            )
        network = loaded.parts.network
        self.vision_projection = network.image_projection
        self.text_projection = network.text_projection
        self.itm_head = network.itm_head
        self.translate(blip2_naming())
        self.image_token: int | None = loaded.config["image_token_index"]

    def get_input_embeddings(self) -> nn.Module:
        """The table of the Q-Former's words."""
        table: nn.Module = self.qformer.words
        return table

    def _texts(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        ids = ids.to(self.device)
        mask = torch.ones_like(ids) if mask is None else mask.to(self.device)
        places = ids == (-1 if self.image_token is None else self.image_token)
        count = int(places[0].sum())
        if (places.sum(dim=1) != count).any() or not places[:, :count].all():
            raise OptionError("some texts have image tokens and others not: make them with one processor")
        limit = self.qformer.config.max_positions
        if ids.shape[1] - count > limit:
            raise OptionError(
                f"a text of {ids.shape[1] - count} tokens is longer than the Q-Former's {limit} positions: "
                "give the processor truncation=True and max_length"
            )
        return ids[:, count:], mask[:, count:]


class Blip2ForImageTextRetrieval(Matching):
    """Image-text matching (ITM), of pairs, and contrast (ITC), of all images with all texts."""

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_image_text_matching_head: bool = False,
        **others: object,
    ) -> Any:
        """ITM logits of each image with its text, or ITC cosines of every image with every text.

        A `MatchingOutput`, or with return_dict=False a tuple.

        Args:
            input_ids: [T, L]; image tokens in front of them, as some processors put them, are taken away. Ids that
                have none are read whole, of which transformers cuts off the first words.
            attention_mask: [T, L], 0 for padding.

        Raises:
            OptionError: another keyword, ITM of different numbers of images and texts, or a text that is too long.
        """
        as_tuple = tuple_wanted("the model", others)
        ids, mask = self._texts(input_ids, attention_mask)
        if use_image_text_matching_head and len(ids) != len(pixel_values):
            raise OptionError(f"{len(pixel_values)} images came with {len(ids)} texts: matching takes them in pairs")
        vision: FeatureOutput = self.vision_model(pixel_values)
        features = vision.last_hidden_state.to(self.query_tokens.dtype)
        if use_image_text_matching_head:
            joint = self.qformer.joint(ids, mask, features)
            queries = joint[:, : self.qformer.config.num_queries].to(self.itm_head.weight.dtype)
            logits = self.itm_head(queries).mean(dim=1)
            found = MatchingOutput(
                logits_per_image=logits,
                logits_per_text=logits.t(),
                text_embeds=joint,
                image_embeds=vision.last_hidden_state,
                text_model_output=FeatureOutput(last_hidden_state=joint, pooler_output=joint[:, 0]),
                vision_model_output=vision,
            )
            return found.to_tuple() if as_tuple else found
        hidden = self.qformer.text(ids, mask)
        queries = self.qformer.image(features).to(self.vision_projection.weight.dtype)
        images = F.normalize(self.vision_projection(queries), dim=-1)
        first = hidden[:, 0].to(self.text_projection.weight.dtype)
        texts = F.normalize(self.text_projection(first), dim=-1)
        cosines = (images @ texts.t()).amax(dim=1)
        found = MatchingOutput(
            logits_per_image=cosines,
            logits_per_text=cosines.t(),
            text_embeds=texts,
            image_embeds=images,
            text_model_output=FeatureOutput(last_hidden_state=hidden, pooler_output=hidden[:, 0]),
            vision_model_output=vision,
        )
        return found.to_tuple() if as_tuple else found


class Blip2VisionModelWithProjection(Matching):
    """Images to the space that they share with texts."""

    def forward(self, pixel_values: Tensor, **others: object) -> Any:
        """A `ProjectionOutput` of images, or with return_dict=False a tuple."""
        as_tuple = tuple_wanted("the model", others)
        vision, queries = self._query(pixel_values, False)
        vectors = queries.last_hidden_state.to(self.vision_projection.weight.dtype)
        images = F.normalize(self.vision_projection(vectors), dim=-1)
        found = ProjectionOutput(image_embeds=images, last_hidden_state=vision.last_hidden_state)
        return found.to_tuple() if as_tuple else found


class Blip2TextModelWithProjection(Matching):
    """Texts to the space that they share with images."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: object) -> Any:
        """A `ProjectionOutput` of texts, or with return_dict=False a tuple."""
        as_tuple = tuple_wanted("the model", others)
        hidden = self.qformer.text(*self._texts(input_ids, attention_mask))
        words = hidden.to(self.text_projection.weight.dtype)
        texts = F.normalize(self.text_projection(words), dim=-1)
        found = ProjectionOutput(text_embeds=texts, last_hidden_state=hidden)
        return found.to_tuple() if as_tuple else found
