"""Every BLIP-2 that has a name: what it is made of, which files it comes in, how it likes to be asked.

Ours is inside the package. Two groups hold the same official trainings. LAVIS' names are an architecture and a type
("blip2_opt/pretrain_opt2.7b"); their files leave frozen parts out, which come from files of their own. The hub's names
("Salesforce/blip2-opt-2.7b") are whole folders that transformers wrote. Sources: https://github.com/salesforce/LAVIS
(lavis/configs/models/blip2) and https://huggingface.co/Salesforce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openblip.checkpoints.hub.sources import Repository, Source, WebFile
from openblip.checkpoints.model_entry import (
    LANGUAGE,
    PROJECTION,
    QFORMER,
    TEXT,
    VISION,
    ImageEncoder,
    LanguageModel,
    ModelEntry,
)

if TYPE_CHECKING:
    from openblip.nn.blip2 import Blip2Config
    from openblip.nn.opt import OptConfig
    from openblip.nn.t5 import T5Config

EVA_VIT_G = ImageEncoder("eva_vit_g", "EVA ViT-g", "MIT", width=1408, depth=39, mlp_width=6144)
CLIP_VIT_L = ImageEncoder("clip_vit_L", "CLIP ViT-L", "MIT", width=1024, depth=23, mlp_width=4096)

QFORMER_LICENCE = "BSD-3-Clause"
OPT_LICENCE = "non-commercial OPT-175B licence"
OPT_2_7B = LanguageModel(
    *("OPT-2.7b", "facebook/opt-2.7b", OPT_LICENCE, 2, "opt"),
    vocab_size=50272,
    width=2560,
    depth=32,
    num_heads=32,
    head_width=80,
    ffn_width=10240,
    params=2_651_596_800,
    table_params=133_944_320,
)
OPT_6_7B = LanguageModel(
    *("OPT-6.7b", "facebook/opt-6.7b", OPT_LICENCE, 2, "opt"),
    vocab_size=50272,
    width=4096,
    depth=32,
    num_heads=32,
    head_width=128,
    ffn_width=16384,
    params=6_658_473_984,
    table_params=214_310_912,
)
HUB_OPT_2_7B = replace(OPT_2_7B, vocab_size=50304, params=2_651_678_720, table_params=134_026_240)
HUB_OPT_6_7B = replace(OPT_6_7B, vocab_size=50304, params=6_658_605_056, table_params=214_441_984)
"""The hub's BLIP-2 folders have room for an image token, padded to a multiple of 64; before 2024 they had not."""
FLAN_T5_XL = LanguageModel(
    *("FLAN-T5 XL", "google/flan-t5-xl", "Apache-2.0", 4, "t5"),
    vocab_size=32128,
    width=2048,
    depth=24,
    num_heads=32,
    head_width=64,
    ffn_width=5120,
    params=2_849_757_184,
    table_params=131_596_288,
)
FLAN_T5_XXL = LanguageModel(
    *("FLAN-T5 XXL", "google/flan-t5-xxl", "Apache-2.0", 4, "t5"),
    vocab_size=32128,
    width=4096,
    depth=24,
    num_heads=64,
    head_width=64,
    ffn_width=10240,
    params=11_135_332_352,
    table_params=263_192_576,
)

WRITES = ("caption", "ask", "chat")
MATCHES = ("match", "embed", "classify")
"""What a model can do with a language model, and with a text side."""

PRETRAINED, COCO = 224, 364
"""Side of the images in pixels: of pre-trained models, and of those fine-tuned on COCO."""
VISION_PARAMS = {
    ("eva_vit_g", PRETRAINED): 985_897_344,
    ("eva_vit_g", COCO): 986_488_704,
    ("clip_vit_L", PRETRAINED): 290_583_552,
}
"""Of encoder and image size, with the LayerNorm behind it."""
QFORMER_PARAMS = {1408: 105_162_240, 1024: 101_623_296}
"""Of the image side, by width of the image encoder."""
PROJECTION_PARAMS = {2048: 1_574_912, 2560: 1_968_640, 4096: 3_149_824}
"""By width of the language model."""
TEXT_PARAMS = {"lavis": 81_540_414, "transformers": 80_917_763}
"""Transformers' folders leave out the head that text is written with in stage 1 (ITG)."""

QFORMER_MATRIX_PARAMS = {1408: 104_988_672, 1024: 101_449_728}
"""Weights of the Q-Former's matrices, by width of the image encoder; `TEXT_MATRIX_PARAMS`: of its text side, words and
head included."""
TEXT_MATRIX_PARAMS = {"lavis": 80_654_592, "transformers": 80_064_768}

BERT = "google-bert/bert-base-uncased"
FROZEN_FILE_BYTES = {"eva_vit_g": 2_030_000_000, "clip_vit_L": 610_000_000}
"""EVA's as people's download logs show it (1.89 GiB: float16, 40 blocks); CLIP's estimated (float16, 24 blocks)."""

MINI = ModelEntry(
    name="mini",
    family="blip2",
    summary="BLIP-2, EfficientNet-Lite2 + Q-Former + OPT-layout decoder; trained by this project, inside the package; "
    "photos of people, animals and everyday scenes",
    origin="openblip",
    abilities=(*WRITES, *MATCHES),
    image_size=288,
    params={VISION: 4_871_856, QFORMER: 9_763_584, TEXT: 7_013_131, PROJECTION: 123_200, LANGUAGE: 7_848_000},
    licence="non-commercial research (see its LICENSE)",
    terms="non-commercial research (see its LICENSE)",
    int8_params=24_262_144,
    int4_params=6_144_000,
    folder=Path(str(resources.files("openblip"))) / "weights" / "mini",
)
"""Ours, which lies inside the package and so has nothing to fetch."""


def _config(encoder: ImageEncoder, language: LanguageModel | None, image_size: int) -> Blip2Config:
    """The network of an official model."""
    from openblip.nn.blip2 import Blip2Config
    from openblip.nn.opt import OptConfig
    from openblip.nn.qformer import QFormerConfig
    from openblip.nn.t5 import T5Config
    from openblip.nn.vit import CLIP_VIT_L, EVA_VIT_G

    def opt(sizes: LanguageModel) -> OptConfig:
        return OptConfig(sizes.vocab_size, sizes.width, sizes.depth, sizes.num_heads, sizes.ffn_width)

    def t5(sizes: LanguageModel) -> T5Config:
        return T5Config(
            vocab_size=sizes.vocab_size,
            width=sizes.width,
            depth=sizes.depth,
            decoder_depth=sizes.depth,
            num_heads=sizes.num_heads,
            head_width=sizes.head_width,
            ffn_width=sizes.ffn_width,
            activation="gelu",  # LAVIS', and so what the Q-Former was trained with
        )

    encoders = {"eva_vit_g": EVA_VIT_G, "clip_vit_L": CLIP_VIT_L}
    languages: dict[str, Callable[[LanguageModel], OptConfig | T5Config]] = {"opt": opt, "t5": t5}
    vision = replace(encoders[encoder.name], image_size=image_size)
    qformer = QFormerConfig(image_width=vision.width, vocab_size=30_523 if language is None else 0)
    return Blip2Config(vision, qformer, None if language is None else languages[language.kind](language))


def _official(
    names: tuple[str, ...],
    origin: Literal["lavis", "transformers"],
    encoder: ImageEncoder,
    language: LanguageModel | None,
    image_size: int,
    files: Callable[[Mapping[str, int]], tuple[Source, ...]],
    card: str = "",
) -> ModelEntry:
    """An entry of an official model.

    Args:
        files: the weights of each part to where they are read from.
        card: the licence that the hub's page names, which does not cover what was put in frozen.
    """
    tuned = image_size == COCO
    t5 = language is not None and language.kind == "t5"
    params = {VISION: VISION_PARAMS[encoder.name, image_size], QFORMER: QFORMER_PARAMS[encoder.width]}
    licences = {QFORMER: QFORMER_LICENCE, encoder.title: encoder.licence}
    int4_params, int8_params = encoder.matrix_params, QFORMER_MATRIX_PARAMS[encoder.width]
    if language is None:
        params[TEXT] = TEXT_PARAMS[origin]
        int8_params += TEXT_MATRIX_PARAMS[origin]
    else:
        int4_params += language.matrix_params
        int8_params += language.word_params
        params |= {PROJECTION: PROJECTION_PARAMS[language.width], LANGUAGE: language.params}
        licences[language.title] = language.licence
    made_of = encoder.title if language is None else f"{encoder.title} + {language.title}"
    return ModelEntry(
        name=names[0],
        aliases=names[1:],
        family="blip2",
        summary=f"{made_of}, {'fine-tuned on COCO' if tuned else 'pre-trained'}",
        origin=origin,
        abilities=MATCHES if language is None else WRITES,
        image_size=image_size,
        params=params,
        int8_params=int8_params + int4_params,
        int4_params=int4_params,
        licence=", ".join(f"{licence} ({part})" for part, licence in licences.items()) + card,
        terms=", ".join(dict.fromkeys(licences.values())),
        files=files(params),
        # Prompts and lengths as LAVIS' model and evaluation configs have them.
        prompts={"caption": "a photo of" if tuned else "", "question": "Question: {question} Short answer:"},
        generation={
            "stop_token": "</s>" if t5 else "\n",
            "captions": {"min_new_tokens": 8 if tuned else 1},
            "answers": {"length_penalty": -1.0 if t5 else 0.0},
        },
        vision=encoder,
        language=language,
        build_config=partial(_config, encoder, language, image_size),
    )


def _lavis(
    architectures: tuple[str, ...],
    kind: str,
    file: str,
    encoder: ImageEncoder,
    language: LanguageModel | None = None,
    image_size: int = PRETRAINED,
) -> ModelEntry:
    tuned = image_size == COCO  # with its own copy of the image encoder

    def files(params: Mapping[str, int]) -> tuple[Source, ...]:
        own = tuple(part for part in params if part != LANGUAGE and (tuned or part != VISION))
        # float32, without what was frozen in training
        found: list[Source] = [WebFile(file, own, 4 * sum(params[part] for part in own))]
        if not tuned:
            found.append(WebFile(f"{encoder.name}.pth", (VISION,), FROZEN_FILE_BYTES[encoder.name]))
        if language is None:
            return (*found, Repository(BERT, (), 700_000))
        return (*found, Repository(language.repository, (LANGUAGE,), language.stored_bytes * language.params))

    names = tuple(f"{architecture}/{kind}" for architecture in architectures)
    return _official(names, "lavis", encoder, language, image_size, files)


def _hub(name: str, language: LanguageModel | None = None, image_size: int = PRETRAINED) -> ModelEntry:
    def files(params: Mapping[str, int]) -> tuple[Source, ...]:
        # float32; their encoder has zeros for the keys' bias
        return (Repository(name, tuple(params), 4 * (sum(params.values()) + EVA_VIT_G.depth * EVA_VIT_G.width)),)

    card = "" if language is None else "; the hub's page says MIT"
    return _official((name,), "transformers", EVA_VIT_G, language, image_size, files, card)


OPT = ("blip2_opt",)
T5 = ("blip2_t5",)
STAGE_1 = ("blip2", "blip2_feature_extractor", "blip2_image_text_matching")

OFFICIAL: tuple[ModelEntry, ...] = (
    _lavis(OPT, "pretrain_opt2.7b", "blip2_pretrained_opt2.7b.pth", EVA_VIT_G, OPT_2_7B),
    _lavis(OPT, "caption_coco_opt2.7b", "blip2_caption_opt2.7b.pth", EVA_VIT_G, OPT_2_7B, COCO),
    _lavis(OPT, "pretrain_opt6.7b", "blip2_pretrained_opt6.7b.pth", EVA_VIT_G, OPT_6_7B),
    _lavis(OPT, "caption_coco_opt6.7b", "blip2_caption_opt6.7b.pth", EVA_VIT_G, OPT_6_7B, COCO),
    _lavis(T5, "pretrain_flant5xl", "blip2_pretrained_flant5xl.pth", EVA_VIT_G, FLAN_T5_XL),
    _lavis(T5, "caption_coco_flant5xl", "blip2_caption_flant5xl.pth", EVA_VIT_G, FLAN_T5_XL, COCO),
    _lavis(T5, "pretrain_flant5xxl", "blip2_pretrained_flant5xxl.pth", EVA_VIT_G, FLAN_T5_XXL),
    _lavis(T5, "pretrain_flant5xl_vitL", "blip2_pretrained_flant5xl_vitL.pth", CLIP_VIT_L, FLAN_T5_XL),
    _lavis(STAGE_1, "pretrain", "blip2_pretrained.pth", EVA_VIT_G),
    _lavis(STAGE_1, "pretrain_vitL", "blip2_pretrained_vitL.pth", CLIP_VIT_L),
    _lavis(STAGE_1, "coco", "blip2_finetune_coco.pth", EVA_VIT_G, image_size=COCO),
    _hub("Salesforce/blip2-opt-2.7b", HUB_OPT_2_7B),
    _hub("Salesforce/blip2-opt-2.7b-coco", HUB_OPT_2_7B, COCO),
    _hub("Salesforce/blip2-opt-6.7b", HUB_OPT_6_7B),
    _hub("Salesforce/blip2-opt-6.7b-coco", HUB_OPT_6_7B, COCO),
    _hub("Salesforce/blip2-flan-t5-xl", FLAN_T5_XL),
    _hub("Salesforce/blip2-flan-t5-xl-coco", FLAN_T5_XL, COCO),
    _hub("Salesforce/blip2-flan-t5-xxl", FLAN_T5_XXL),
    _hub("Salesforce/blip2-itm-vit-g"),
    _hub("Salesforce/blip2-itm-vit-g-coco", image_size=COCO),
)

MODELS = (MINI, *OFFICIAL)
