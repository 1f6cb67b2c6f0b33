"""Every BLIP that has a name: what it is made of, which files it comes in, how it captions and is asked.

LAVIS' names are an architecture and a type ("blip_caption/base_coco"); each is one file of LAVIS or of the original
BLIP repository. The hub's names ("Salesforce/blip-image-captioning-base") are folders that transformers wrote. Sources:
https://github.com/salesforce/LAVIS (lavis/configs/models), https://github.com/salesforce/BLIP and
https://huggingface.co/Salesforce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from openblip.checkpoints.hub.sources import Repository, Source, WebFile
from openblip.checkpoints.model_entry import LANGUAGE, TEXT, VISION, ModelEntry

if TYPE_CHECKING:
    from openblip.nn.blip import BlipConfig

FAMILY = "blip"
LICENCE = "BSD-3-Clause"
BUCKET = "https://storage.googleapis.com/sfr-vision-language-research/"
ORIGINAL, LAVIS = f"{BUCKET}BLIP/models/", f"{BUCKET}LAVIS/models/BLIP/"
"""Where the files of the original BLIP repository lie, and those that LAVIS trained."""
BERT = "google-bert/bert-base-uncased"

Size = Literal["base", "large"]
Task = Literal["caption", "answer", "match", "embed", "pretrain", "pair", "entail"]
"""What a model was made for: "embed" has no head that reads a text with an image (ITM), "pretrain" matches and captions
with weights that encoder and decoder share, "pair" judges statements about two images and "entail" about one."""

ABILITIES: Mapping[Task, tuple[str, ...]] = {
    "caption": ("caption",),
    "answer": ("ask",),
    "match": ("match", "embed", "classify"),
    "embed": ("match", "embed", "classify"),
    "pretrain": ("caption", "match", "embed", "classify"),
    "pair": ("judge",),
    "entail": ("judge",),
}
TRUTH, ENTAILMENT = ("False", "True"), ("contradiction", "neutral", "entailment")
"""The classes of NLVR2 and of SNLI-VE, in LAVIS' order."""
VISION_PARAMS: Mapping[tuple[Size, int], int] = {
    ("base", 224): 85_798_656,
    ("base", 384): 86_090_496,
    ("base", 480): 86_339_328,
    ("large", 384): 303_690_752,
}
"""Of the image encoder, by size and side of its images."""
DECODER_PARAMS: Mapping[Size, int] = {"base": 137_881_148, "large": 142_599_740}
ENCODER_PARAMS: Mapping[Size, int] = {"base": 137_258_496, "large": 141_977_088}
VISION_MATRIX_PARAMS: Mapping[Size, int] = {"base": 84_934_656, "large": 301_989_888}
LAYER_MATRIX_PARAMS: Mapping[Size, int] = {"base": 113_246_208, "large": 117_964_800}
"""Weights of the matrices of an encoder's or a decoder's layers."""
WORD_PARAMS, DENSE_PARAMS = 30_524 * 768, 768 * 768
"""Of a table of words, and of the layer in front of the decoder's scores."""
OWN_DECODER_PARAMS, OWN_MATRIX_PARAMS = 28_989_500, 28_311_552
"""Of a decoder that shares the rest with the encoder: self-attention and the head; the matrices of the former."""
ITC_PARAMS: Mapping[Size, int] = {"base": 2 * (768 + 1) * 256 + 1, "large": (768 + 1024 + 2) * 256 + 1}
"""Two projections and the temperature."""
ITM_PARAMS = 2 * (768 + 1)
PAIR_PARAMS = 12 * 4 * (768 + 1) * 768 + 6 * (2 * 768 + 1) * 768
PAIR_MATRIX_PARAMS = 12 * 4 * 768 * 768 + 6 * 2 * 768 * 768
"""Of the second image's attention in 12 layers, and of what merges it with the first one's in 6; their matrices."""

PROMPT = "a picture of"
CAPTIONS = {"num_beams": 3, "max_new_tokens": 26, "min_new_tokens": 6, "length_penalty": 1.0}
ANSWERS = {"num_beams": 3, "max_new_tokens": 9, "min_new_tokens": 0, "length_penalty": 1.0}
"""LAVIS' 10 to 30 and 1 to 10 tokens count what a text begins with: 4 tokens and 1."""
GENERATION = {"stop_token": "[SEP]", "captions": CAPTIONS, "answers": ANSWERS}
PROMPTS = {"caption": PROMPT, "question": "{question}"}


def class_names(count: int) -> tuple[str, ...]:
    """What so many classes of a file that names none are called: as in NLVR2 and SNLI-VE, otherwise by number."""
    usual = {len(names): names for names in (TRUTH, ENTAILMENT)}
    return usual.get(count, tuple(map(str, range(count))))


def blip_config(size: Size, task: Task, image_size: int) -> BlipConfig:
    """The network of an official model."""
    from openblip.nn.bert import BertConfig
    from openblip.nn.blip import BlipConfig
    from openblip.nn.vit import VitConfig

    width, depth, heads = {"base": (768, 12, 12), "large": (1024, 24, 16)}[size]
    vision = VitConfig(image_size, 16, width, depth, heads, 4 * width, layer_norm_eps=1e-6, final_norm=True)
    text = BertConfig(image_width=width)
    if task == "caption":
        return BlipConfig(vision, decoder=text)
    if task == "answer":
        return BlipConfig(vision, text, BertConfig(image_width=text.width), answers=True)
    if task == "pretrain":
        return BlipConfig(vision, text, text, shared_width=256, itm=True, shares_text=True)
    if task == "pair":
        return BlipConfig(vision, replace(text, images=2), num_classes=len(TRUTH))
    if task == "entail":
        return BlipConfig(vision, text, num_classes=len(ENTAILMENT))
    return BlipConfig(vision, text, shared_width=256, itm=task == "match")


def _head_params(classes: int) -> int:
    return (768 + 1) * (768 + classes)


def _params(size: Size, task: Task, image_size: int) -> dict[str, int]:
    params = {VISION: VISION_PARAMS[size, image_size]}
    if task in ("match", "embed", "pretrain"):
        params[TEXT] = ENCODER_PARAMS[size] + ITC_PARAMS[size] + (0 if task == "embed" else ITM_PARAMS)
    if task == "pretrain":
        params[LANGUAGE] = OWN_DECODER_PARAMS
    if task == "answer":
        params[TEXT] = ENCODER_PARAMS[size]
    if task == "pair":
        params[TEXT] = ENCODER_PARAMS[size] + PAIR_PARAMS + _head_params(len(TRUTH))
    if task == "entail":
        params[TEXT] = ENCODER_PARAMS[size] + _head_params(len(ENTAILMENT))
    if task in ("caption", "answer"):
        params[LANGUAGE] = DECODER_PARAMS["base" if task == "answer" else size]
    return params


def _matrix_params(size: Size, task: Task, params: Mapping[str, int]) -> tuple[int, int]:
    """Weights that int8 holds in 8 bits, and those of them that int4 holds in 4: the image encoder, and the decoder."""
    int4 = VISION_MATRIX_PARAMS[size]
    rest = 0
    if TEXT in params:
        rest += LAYER_MATRIX_PARAMS[size] + WORD_PARAMS
    if task == "pair":
        rest += PAIR_MATRIX_PARAMS
    if task == "pretrain":
        int4 += OWN_MATRIX_PARAMS
        rest += DENSE_PARAMS
    elif LANGUAGE in params:
        int4 += LAYER_MATRIX_PARAMS["base" if TEXT in params else size]
        rest += WORD_PARAMS + DENSE_PARAMS
    return int4 + rest, int4


def _entry(
    name: str,
    origin: Literal["lavis", "transformers"],
    files: tuple[Source, ...],
    size: Size,
    task: Task,
    image_size: int,
    trained: str,
    aliases: tuple[str, ...] = (),
) -> ModelEntry:
    writes = task in ("caption", "answer", "pretrain")
    params = _params(size, task, image_size)
    int8_params, int4_params = _matrix_params(size, task, params)
    return ModelEntry(
        name=name,
        aliases=aliases,
        family=FAMILY,
        summary=f"ViT-{size[0].upper()}/16 + BERT, {trained}",
        origin=origin,
        abilities=ABILITIES[task],
        image_size=image_size,
        params=params,
        int8_params=int8_params,
        int4_params=int4_params,
        licence=LICENCE,
        terms=LICENCE,
        files=files,
        prompts=PROMPTS if writes else {},
        generation=GENERATION if writes else {},
        build_config=partial(blip_config, size, task, image_size),
    )


def _lavis(
    name: str, base: str, file: str, size: Size, task: Task, image_size: int, trained: str, *aliases: str
) -> ModelEntry:
    params = _params(size, task, image_size)
    files: tuple[Source, ...] = (
        WebFile(file, tuple(params), 4 * sum(params.values()), base),
        Repository(BERT, (), 700_000),
    )
    return _entry(name, "lavis", files, size, task, image_size, trained, aliases)


def _hub(name: str, size: Size, task: Task, trained: str) -> ModelEntry:
    params = _params(size, task, 384)
    files: tuple[Source, ...] = (Repository(f"Salesforce/{name}", tuple(params), 4 * sum(params.values())),)
    return _entry(f"Salesforce/{name}", "transformers", files, size, task, 384, trained)


COCO_CAPTIONS, COCO_RETRIEVAL = "fine-tuned on COCO's captions", "fine-tuned on COCO for retrieval"
FLICKR_RETRIEVAL = "fine-tuned on Flickr30k for retrieval"
RETRIEVAL = "blip_retrieval"

MODELS: tuple[ModelEntry, ...] = (
    _lavis("blip_caption/base_coco", LAVIS, "blip_coco_caption_base.pth", "base", "caption", 384, COCO_CAPTIONS),
    _lavis("blip_caption/large_coco", ORIGINAL, "model_large_caption.pth", "large", "caption", 384, COCO_CAPTIONS),
    _lavis(
        *("blip_vqa/vqav2", ORIGINAL, "model_base_vqa_capfilt_large.pth", "base", "answer", 480),
        "fine-tuned on VQA v2",
    ),
    _lavis("blip_vqa/okvqa", LAVIS, "blip_okvqa.pth", "base", "answer", 480, "fine-tuned on OK-VQA"),
    _lavis("blip_vqa/aokvqa", LAVIS, "blip_aokvqa.pth", "base", "answer", 480, "fine-tuned on A-OKVQA"),
    _lavis(
        *("blip_image_text_matching/base", ORIGINAL, "model_base_retrieval_coco.pth", "base", "match", 384),
        COCO_RETRIEVAL,
    ),
    _lavis(
        *("blip_image_text_matching/large", ORIGINAL, "model_large_retrieval_coco.pth", "large", "match", 384),
        COCO_RETRIEVAL,
    ),
    _lavis("blip_retrieval/coco", LAVIS, "blip_coco_retrieval.pth", "base", "match", 384, COCO_RETRIEVAL),
    _lavis("blip_retrieval/flickr", LAVIS, "blip_flickr_retrieval.pth", "base", "match", 384, FLICKR_RETRIEVAL),
    _lavis(
        *("blip_feature_extractor/base", ORIGINAL, "model_base_capfilt_large.pth", "base", "embed", 224),
        "pre-trained",
    ),
    # The file that the config of LAVIS' blip_pretrain names, though its code never reads it.
    _lavis(
        *("blip_pretrain/base", ORIGINAL, "model_base_capfilt_large.pth", "base", "pretrain", 224),
        "pre-trained",
    ),
    _lavis("blip_nlvr/nlvr", ORIGINAL, "model_base_nlvr.pth", "base", "pair", 384, "fine-tuned on NLVR2"),
    _entry(
        *("blip_classification/base", "lavis", (Repository(BERT, (), 700_000),), "base", "entail", 384),
        "to be trained for entailment (SNLI-VE)",
    ),
    _hub("blip-image-captioning-base", "base", "caption", COCO_CAPTIONS),
    _hub("blip-image-captioning-large", "large", "caption", COCO_CAPTIONS),
    _hub("blip-vqa-base", "base", "answer", "fine-tuned on VQA v2"),
    _hub("blip-vqa-capfilt-large", "base", "answer", "fine-tuned on VQA v2"),
    _hub("blip-itm-base-coco", "base", "match", COCO_RETRIEVAL),
    _hub("blip-itm-base-flickr", "base", "match", FLICKR_RETRIEVAL),
    _hub("blip-itm-large-coco", "large", "match", COCO_RETRIEVAL),
    _hub("blip-itm-large-flickr", "large", "match", FLICKR_RETRIEVAL),
)
