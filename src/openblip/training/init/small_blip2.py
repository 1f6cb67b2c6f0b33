"""Build a new small BLIP-2 from a pretrained EfficientNet-Lite, a pretrained BERT and an untrained decoder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.bert import qformer_from_bert
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.efficientnet import HEAD_WIDTH, EfficientNetConfig
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.text import MatchingText, PromptTemplates, Tokenizer
from openblip.training.init.pretrained import read_bert, read_efficientnet
from openblip.training.init.vocabulary import train_decoder_tokenizer, trim_wordpiece
from openblip.training.recipe_keys import NewModel

LITE_SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
TENSORFLOW_MEAN = (127 / 255,) * 3
TENSORFLOW_STD = (128 / 255,) * 3
"""EfficientNet-Lite reads (value - 127) / 128."""


def build_small_blip2(new: NewModel, images: Iterable[ImageText], name: str, seed: int) -> ModelParts:
    """Build the model; its vocabularies come from the texts of the images.

    Raises:
        CheckpointError: a pretrained part is missing, broken or of an unknown kind.
    """
    torch.manual_seed(seed)
    images = list(images)
    prompts = PromptTemplates()
    texts = [text for image in images for text in _texts(image, prompts)]
    bert = read_bert(Path(new.bert), "new.bert")
    bert.check(new.bert_layers, new.max_text_tokens)
    trimmed = trim_wordpiece(bert.pieces, texts, new.qformer_vocab)
    decoder_words = train_decoder_tokenizer(texts, new.decoder_vocab)
    vision = _vision_config(new)
    config = Blip2Config(
        vision=vision,
        qformer=QFormerConfig(
            image_width=HEAD_WIDTH + vision.place_width,
            num_queries=new.num_queries,
            width=bert.width,
            depth=len(new.bert_layers),
            num_heads=bert.width // 32,
            ffn_width=bert.ffn_width,
            vocab_size=len(trimmed.kept),
            max_positions=new.max_text_tokens,
        ),
        language=OptConfig(
            vocab_size=decoder_words.get_vocab_size(),
            width=new.decoder_width,
            depth=new.decoder_depth,
            num_heads=new.decoder_heads,
            ffn_width=new.decoder_ffn,
            max_positions=new.max_positions,
            dropout=new.decoder_dropout,
        ),
        shared_width=new.shared_width,
    )
    network = Blip2Network(config)
    _initialize(network)
    read_efficientnet(Path(new.vision), network.vision)
    start = qformer_from_bert(bert.state, new.bert_layers, trimmed.kept)
    start["positions.weight"] = start["positions.weight"][: new.max_text_tokens]
    network.qformer.load_state_dict(start, strict=False)
    return ModelParts(
        name=name,
        network=network.eval(),
        transform=ImageTransform(new.image_size, TENSORFLOW_MEAN, TENSORFLOW_STD),
        matching=MatchingText(Tokenizer(trimmed.tokenizer, "[CLS]", "[PAD]"), new.max_text_tokens),
        tokenizer=Tokenizer(decoder_words, "</s>", "<pad>"),
        prompts=prompts,
    )


def _vision_config(new: NewModel) -> EfficientNetConfig:
    found = re.search(r"lite\d", Path(new.vision).name)
    if found is None or found[0] not in LITE_SCALES:
        names = ", ".join(LITE_SCALES)
        raise CheckpointError(f"{new.vision}: the file name must contain the kind of EfficientNet ({names})")
    width_scale, depth_scale = LITE_SCALES[found[0]]
    return EfficientNetConfig(new.image_size, width_scale, depth_scale, new.place_width)


def _texts(image: ImageText, prompts: PromptTemplates) -> list[str]:
    question_texts = [f"{prompts.ask(q.question)} {q.answer}\n" for q in image.questions]
    return [*image.captions, *image.statements, *question_texts]


def _initialize(network: nn.Module) -> None:
    """Normal weights with a standard deviation of 0.02 and zero biases, as in BERT and OPT."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
