"""Every official BLIP-2, one line each: what it is made of, which files it comes in, how it likes to be asked.

Two families hold the same trainings. LAVIS' names are an architecture and a type ("blip2_opt/pretrain_opt2.7b"); their
files leave frozen parts out, which come from files of their own. The hub's names ("Salesforce/blip2-opt-2.7b") are
whole folders that transformers wrote. Sources: https://github.com/salesforce/LAVIS (lavis/configs/models/blip2) and
https://huggingface.co/Salesforce.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from openblip.checkpoints import sizes
from openblip.checkpoints.sizes import ImageEncoder, LanguageModel
from openblip.errors import CheckpointError

if TYPE_CHECKING:
    from openblip.checkpoints.model_parts import GenerationDefaults
    from openblip.nn.blip2 import Blip2Config
    from openblip.text import PromptTemplates

BUNDLED = "mini"
"""Ours, which lies inside the package and so has nothing to fetch."""

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"

VISION = "image encoder"
QFORMER = "Q-Former"
TEXT = "text side"
PROJECTION = "projection"
LANGUAGE = "language model"
PARTS = (VISION, QFORMER, TEXT, PROJECTION, LANGUAGE)
"""What a BLIP-2 consists of. The text side includes ITC and ITM; the projection leads to the language model."""

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
    ffn_width=10240,
    head_width=80,
)
OPT_6_7B = replace(
    OPT_2_7B, title="OPT-6.7b", repository="facebook/opt-6.7b", width=4096, ffn_width=16384, head_width=128
)
FLAN_T5_XL = LanguageModel(
    *("FLAN-T5 XL", "google/flan-t5-xl", "Apache-2.0", 4, "t5"),
    vocab_size=32128,
    width=2048,
    depth=24,
    num_heads=32,
    ffn_width=5120,
)
FLAN_T5_XXL = replace(
    FLAN_T5_XL, title="FLAN-T5 XXL", repository="google/flan-t5-xxl", width=4096, num_heads=64, ffn_width=10240
)

HUB_OPT_VOCABULARY = 50304
"""The hub's BLIP-2 folders have room for an image token, padded to a multiple of 64; before 2024 they had not."""

BERT = "google-bert/bert-base-uncased"
FROZEN_FILE_BYTES = {"eva_vit_g": 2_030_000_000, "clip_vit_L": 610_000_000}
"""EVA's as people's download logs show it (1.89 GiB: float16, 40 blocks); CLIP's estimated (float16, 24 blocks)."""


@dataclass(frozen=True)
class WebFile:
    """One of LAVIS' files.

    Attributes:
        supplies: which of PARTS are taken from it.
        size: bytes, to about one percent; the server knows exactly.
    """

    name: str
    supplies: tuple[str, ...]
    size: int

    @property
    def url(self) -> str:
        return LAVIS_URL + self.name


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub.

    Attributes:
        name: owner and name.
        supplies: which of PARTS are taken from it; none when only its tokenizer is.
        size: bytes of what is fetched, to about one percent; 0 when not known.
    """

    name: str
    supplies: tuple[str, ...]
    size: int


Source = WebFile | Repository


@dataclass(frozen=True)
class ZooModel:
    """An official checkpoint.

    Attributes:
        names: all that mean it; the first is shown.
        origin: whose layout its files have.
        language: None for a stage-1 model, which matches and embeds instead of writing.
        tuned: fine-tuned on COCO, at 364 px and with its own copy of the image encoder.
        sources: what it is read from; a part is in exactly one of them.
        card: the licence that the hub's page names, which does not cover what was put in frozen.
    """

    names: tuple[str, ...]
    origin: Literal["lavis", "transformers"]
    encoder: ImageEncoder
    language: LanguageModel | None
    tuned: bool
    sources: tuple[Source, ...]
    card: str | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return 364 if self.tuned else 224

    @property
    def abilities(self) -> tuple[str, ...]:
        return ("match", "embed") if self.language is None else ("caption", "ask")

    @property
    def summary(self) -> str:
        made_of = self.encoder.title if self.language is None else f"{self.encoder.title} + {self.language.title}"
        return f"{made_of}, {'fine-tuned on COCO' if self.tuned else 'pre-trained'}"

    @property
    def licence(self) -> str:
        """Part by part: none of them covers another."""
        parts = [f"{QFORMER_LICENCE} ({QFORMER})", f"{self.encoder.licence} ({self.encoder.title})"]
        if self.language is not None:
            parts.append(f"{self.language.licence} ({self.language.title})")
        return ", ".join(parts) + (f"; the hub's page says {self.card}" if self.card else "")

    @property
    def terms(self) -> str:
        """The licences in short: all of them hold for the model as a whole."""
        language = [] if self.language is None else [self.language.licence]
        return ", ".join(dict.fromkeys([QFORMER_LICENCE, self.encoder.licence, *language]))

    def part_parameters(self) -> dict[str, int]:
        """Weights of each part it has, each counted once however often a file repeats it."""
        return _part_parameters(self.origin, self.encoder, self.language, self.image_size)

    @property
    def parameters(self) -> int:
        return sum(self.part_parameters().values())

    @property
    def download_size(self) -> int:
        """Bytes of all its sources, to about one percent."""
        return sum(source.size for source in self.sources)

    def config(self) -> Blip2Config:
        """The network's sizes. A hub folder's own config.json may differ in the rows of its word table."""
        from openblip.nn.blip2 import Blip2Config

        language = None if self.language is None else self.language.config()
        return Blip2Config(
            vision=self.encoder.config(self.image_size),
            qformer=sizes.qformer_config(self.encoder.width, text_side=self.language is None),
            language=language,
        )

    def prompts(self) -> PromptTemplates:
        """As LAVIS' model and evaluation configs have them."""
        from openblip.text import SHORT_QUESTION, PromptTemplates

        return PromptTemplates(caption="a photo of" if self.tuned else "", question=SHORT_QUESTION)

    def defaults(self) -> GenerationDefaults:
        """As LAVIS' `generate`, `predict_answers` and evaluation configs have them."""
        from openblip.checkpoints.model_parts import ANSWERS, CAPTIONS, GenerationDefaults

        t5 = self.language is not None and self.language.kind == "t5"
        return GenerationDefaults(
            stop_token="</s>" if t5 else "\n",
            captions=replace(CAPTIONS, min_new_tokens=8 if self.tuned else 1),
            answers=replace(ANSWERS, length_penalty=-1.0 if t5 else 0.0),
        )


def _part_parameters(
    origin: str, encoder: ImageEncoder, language: LanguageModel | None, image_size: int
) -> dict[str, int]:
    counts = {VISION: encoder.parameters(image_size), QFORMER: sizes.qformer_parameters(encoder.width)}
    if language is None:
        head = sizes.caption_head_parameters() if origin == "lavis" else 0
        counts[TEXT] = sizes.text_side_parameters() + head
    else:
        counts[PROJECTION] = sizes.projection_parameters(language.width)
        counts[LANGUAGE] = language.parameters()
    return counts


def _lavis(
    architectures: tuple[str, ...],
    kind: str,
    file: str,
    encoder: ImageEncoder,
    language: LanguageModel | None = None,
    *,
    tuned: bool = False,
) -> ZooModel:
    counts = _part_parameters("lavis", encoder, language, 364 if tuned else 224)
    own = tuple(part for part in counts if part != LANGUAGE and (tuned or part != VISION))
    # float32, without what was frozen in training
    sources: list[Source] = [WebFile(file, own, 4 * sum(counts[part] for part in own))]
    if not tuned:
        sources.append(WebFile(f"{encoder.name}.pth", (VISION,), FROZEN_FILE_BYTES[encoder.name]))
    if language is None:
        sources.append(Repository(BERT, (), 700_000))
    else:
        sources.append(Repository(language.repository, (LANGUAGE,), language.stored_bytes * counts[LANGUAGE]))
    names = tuple(f"{architecture}/{kind}" for architecture in architectures)
    return ZooModel(names, "lavis", encoder, language, tuned, tuple(sources))


def _hub(name: str, language: LanguageModel | None = None, *, tuned: bool = False) -> ZooModel:
    if language is not None and language.kind == "opt":
        language = replace(language, vocab_size=HUB_OPT_VOCABULARY)
    counts = _part_parameters("transformers", EVA_VIT_G, language, 364 if tuned else 224)
    # float32; their encoder has zeros for the keys' bias
    size = 4 * (sum(counts.values()) + EVA_VIT_G.depth * EVA_VIT_G.width)
    sources = (Repository(name, tuple(counts), size),)
    card = None if language is None else "MIT"
    return ZooModel((name,), "transformers", EVA_VIT_G, language, tuned, sources, card)


OPT = ("blip2_opt",)
T5 = ("blip2_t5",)
STAGE_1 = ("blip2", "blip2_feature_extractor", "blip2_image_text_matching")

ZOO: tuple[ZooModel, ...] = (
    _lavis(OPT, "pretrain_opt2.7b", "blip2_pretrained_opt2.7b.pth", EVA_VIT_G, OPT_2_7B),
    _lavis(OPT, "caption_coco_opt2.7b", "blip2_caption_opt2.7b.pth", EVA_VIT_G, OPT_2_7B, tuned=True),
    _lavis(OPT, "pretrain_opt6.7b", "blip2_pretrained_opt6.7b.pth", EVA_VIT_G, OPT_6_7B),
    _lavis(OPT, "caption_coco_opt6.7b", "blip2_caption_opt6.7b.pth", EVA_VIT_G, OPT_6_7B, tuned=True),
    _lavis(T5, "pretrain_flant5xl", "blip2_pretrained_flant5xl.pth", EVA_VIT_G, FLAN_T5_XL),
    _lavis(T5, "caption_coco_flant5xl", "blip2_caption_flant5xl.pth", EVA_VIT_G, FLAN_T5_XL, tuned=True),
    _lavis(T5, "pretrain_flant5xxl", "blip2_pretrained_flant5xxl.pth", EVA_VIT_G, FLAN_T5_XXL),
    _lavis(T5, "pretrain_flant5xl_vitL", "blip2_pretrained_flant5xl_vitL.pth", CLIP_VIT_L, FLAN_T5_XL),
    _lavis(STAGE_1, "pretrain", "blip2_pretrained.pth", EVA_VIT_G),
    _lavis(STAGE_1, "pretrain_vitL", "blip2_pretrained_vitL.pth", CLIP_VIT_L),
    _lavis(STAGE_1, "coco", "blip2_finetune_coco.pth", EVA_VIT_G, tuned=True),
    _hub("Salesforce/blip2-opt-2.7b", OPT_2_7B),
    _hub("Salesforce/blip2-opt-2.7b-coco", OPT_2_7B, tuned=True),
    _hub("Salesforce/blip2-opt-6.7b", OPT_6_7B),
    _hub("Salesforce/blip2-opt-6.7b-coco", OPT_6_7B, tuned=True),
    _hub("Salesforce/blip2-flan-t5-xl", FLAN_T5_XL),
    _hub("Salesforce/blip2-flan-t5-xl-coco", FLAN_T5_XL, tuned=True),
    _hub("Salesforce/blip2-flan-t5-xxl", FLAN_T5_XXL),
    _hub("Salesforce/blip2-itm-vit-g"),
    _hub("Salesforce/blip2-itm-vit-g-coco", tuned=True),
)


def find_model(name: str) -> ZooModel | None:
    """The official model of this name, LAVIS' or the hub's."""
    return next((model for model in ZOO if name in model.names), None)


def get_model(name: str) -> ZooModel:
    """The official model of this name.

    Raises:
        CheckpointError: there is none; the nearest names are told.
    """
    model = find_model(name)
    if model is None:
        raise CheckpointError(f"{name} is no official model: {did_you_mean(name)}")
    return model


def did_you_mean(name: str) -> str:
    """The official names most like this one, or where to find them all, as the end of a sentence."""
    names = nearest_names(name)
    return f"did you mean {' or '.join(names)}?" if names else "`openblip models` lists them all"


def nearest_names(name: str) -> list[str]:
    """Up to three official names that are much like this one, the likest first."""
    whole = {known.lower(): known for model in ZOO for known in model.names}
    # What stands behind the slash is what people remember.
    ends = {known.rpartition("/")[2]: known for known in reversed(whole)}
    typed = name.lower()
    near = get_close_matches(typed, whole, n=3, cutoff=0.75)
    near += [ends[end] for end in get_close_matches(typed.rpartition("/")[2], ends, n=3, cutoff=0.75)]
    return [whole[known] for known in dict.fromkeys(near)][:3]
