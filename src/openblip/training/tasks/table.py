"""What a run can train, one row an objective. To add one, write its `Task`, and give it a name in `Stage` and a row.

Families are imported when one of them is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from openblip.data.pairs import ImageText, load_claims
from openblip.errors import OptionError
from openblip.evaluation.settings import Task as EvaluationTask
from openblip.training.recipe_keys import Recipe, Stage
from openblip.training.tasks.objective import AnyParts, Finetuning, Images, Learner, Objective
from openblip.training.tasks.task import Runtime, Task


def _language(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.stages import LanguageTask

    return LanguageTask(parts, recipe, runtime)


def _stage1(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.stages import Stage1Task

    return Stage1Task(parts, recipe, runtime)


def _stage2(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.stages import Stage2Task

    return Stage2Task(parts, recipe, images, runtime)


def _caption(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.blip import CaptionTask

    return CaptionTask(parts, recipe, runtime)


def _vqa(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.blip import AnswerTask

    return AnswerTask(parts, recipe, runtime)


def _retrieval(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.pairs import RetrievalTask

    return RetrievalTask(parts, recipe, runtime)


def _pretrain(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.pairs import PretrainTask

    return PretrainTask(parts, recipe, runtime)


def _new_blip2(recipe: Recipe, images: Images, name: str) -> AnyParts:
    from openblip.training.init.small_blip2 import build_small_blip2

    assert recipe.new is not None  # the recipe has no `init`
    return build_small_blip2(recipe.new, images, name, recipe.seed)


def _new_blip(recipe: Recipe, images: Images, name: str) -> AnyParts:
    from openblip.training.init.blip_from_parts import build_blip

    assert recipe.new_blip is not None  # the recipe has no `init`
    return build_blip(recipe.new_blip, name, recipe.seed)


def _prepare_captions(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.blip import prepare_captions

    return prepare_captions(parts, recipe)


def _prepare_answers(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.blip import prepare_answers

    return prepare_answers(parts, recipe)


def _prepare_retrieval(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.blip import prepare_retrieval

    return prepare_retrieval(parts, recipe)


def _nlvr(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.statements import NlvrTask

    return NlvrTask(parts, recipe, runtime)


def _classify(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.statements import ClassifyTask

    return ClassifyTask(parts, recipe, runtime)


def _contrast(parts: AnyParts, recipe: Recipe, images: Images, runtime: Runtime) -> Task:
    from openblip.training.tasks.contrast import ContrastTask

    return ContrastTask(parts, recipe, runtime)


def _prepare_nlvr(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.class_head import with_classes

    return with_classes(parts, images, 2)


def _prepare_classify(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.class_head import with_classes

    return with_classes(parts, images, 1)


def _prepare_blip2(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    from openblip.training.init.blip2 import prepare

    return prepare(parts, recipe)


def is_described(image: ImageText) -> bool:
    """Whether there is a caption, or a statement that was made of a question."""
    return bool(image.descriptions)


def is_asked(image: ImageText) -> bool:
    """Whether there is a question with its answer."""
    return bool(image.questions or image.made_questions)


def is_pair(image: ImageText) -> bool:
    """Whether there is a statement about two images, and its class."""
    return bool(image.label) and len(image.images) == 2


def is_labelled(image: ImageText) -> bool:
    """Whether there is a statement about one image, and its class."""
    return bool(image.label) and len(image.images) == 1


def has_text(image: ImageText) -> bool:
    return bool(image.descriptions or image.questions)


def _has_language_model(parts: AnyParts) -> bool:
    return bool(parts.network.config.language is not None)


def _has_small_language_model(parts: AnyParts) -> bool:
    if parts.network.config.own_language is None:
        return False
    weights = sum(parameter.numel() for parameter in parts.network.own_language_model.parameters())
    return bool(weights <= SMALL_LANGUAGE_MODEL)


def _captions(parts: AnyParts) -> bool:
    config = parts.network.config
    return bool(config.decoder is not None and not config.answers and not config.shares_text)


def _answers(parts: AnyParts) -> bool:
    return bool(parts.network.config.answers)


def _matches(parts: AnyParts) -> bool:
    return bool(parts.network.config.itm and parts.network.config.shared_width) and not _pretrains(parts)


def _pretrains(parts: AnyParts) -> bool:
    return bool(parts.network.config.shares_text)


def _reads_images(parts: AnyParts) -> bool:
    return parts.network.config.encoder is not None


def _reads_one(parts: AnyParts) -> bool:
    return _reads_images(parts) and parts.network.config.encoder.images == 1


def _any(parts: AnyParts) -> bool:
    return True


SMALL_LANGUAGE_MODEL = 100_000_000
"""A language model with at most this many weights learns, too: it is too small to lose much."""
BLIP2_FINETUNING = Finetuning(
    _has_language_model, ("language_model", "qformer"), train_decoder=_has_small_language_model
)
WRITING = {EvaluationTask.CAPTIONS: "cider", EvaluationTask.QUESTIONS: "accuracy"}
VISION = frozenset({"train_vision", "vision_blocks", "drop_path", "gradient_checkpointing", "lora"})
BLIP2 = frozenset({"new", "fresh_qformer", "decoder", "prompt", "mixture", "qformer_precision"})
MATCHING = frozenset({"text_tokens", "itm_share", "learn_candidates"})
PAIRS = frozenset({"text_tokens", "mixture", "train_vision", "drop_path", "gradient_checkpointing", "lora", "momentum"})
WHOLE = frozenset({"train_vision", "drop_path", "gradient_checkpointing", "text_tokens", "lora"})

OBJECTIVES: Mapping[Stage, Objective] = {
    Stage.LANGUAGE: Objective(
        {"blip2": Learner(_language, _prepare_blip2, begin=_new_blip2)},
        has_text,
        WRITING,
        BLIP2 | {"texts_per_image"},
        sees=False,
    ),
    Stage.STAGE1: Objective(
        {"blip2": Learner(_stage1, _prepare_blip2, begin=_new_blip2)},
        is_described,
        {EvaluationTask.RETRIEVAL: "mean"},
        BLIP2 | VISION | MATCHING | {"patch_share"},
        compares=True,
        unused_parts=("language_model",),
    ),
    Stage.STAGE2: Objective(
        {"blip2": Learner(_stage2, _prepare_blip2, BLIP2_FINETUNING, _new_blip2)},
        has_text,
        WRITING,
        BLIP2
        | VISION
        | MATCHING
        | {"language_model", "language_model_revision", "train_decoder", "keep_matching", "self_critical"}
        | {"texts_per_image", "patch_share"},
    ),
    Stage.CAPTION: Objective(
        {"blip": Learner(_caption, _prepare_captions, Finetuning(_captions, ("language_model",)))},
        is_described,
        {EvaluationTask.CAPTIONS: "cider"},
        VISION | {"prompt", "mixture", "text_tokens", "texts_per_image"},
    ),
    Stage.VQA: Objective(
        {"blip": Learner(_vqa, _prepare_answers, Finetuning(_answers, ("language_model", "text")))},
        is_asked,
        {EvaluationTask.QUESTIONS: "accuracy"},
        VISION | {"mixture", "text_tokens", "texts_per_image"},
        needs="questions with answers",
    ),
    Stage.RETRIEVAL: Objective(
        {"blip": Learner(_retrieval, _prepare_retrieval, Finetuning(_matches, ("text",), rate=1e-5))},
        is_described,
        {EvaluationTask.RETRIEVAL: "mean"},
        PAIRS,
        compares=True,
        keeps_copies=True,
    ),
    Stage.PRETRAIN: Objective(
        {
            "blip": Learner(
                _pretrain, finetuning=Finetuning(_pretrains, ("text", "language_model"), rate=1e-5), begin=_new_blip
            )
        },
        is_described,
        {EvaluationTask.RETRIEVAL: "mean"},
        PAIRS | {"new_blip"},
        compares=True,
        keeps_copies=True,
    ),
    Stage.NLVR: Objective(
        {"blip": Learner(_nlvr, _prepare_nlvr, Finetuning(_reads_images, ("text",), 2.5e-5, train_vision=True))},
        is_pair,
        {EvaluationTask.CLASSIFICATION: "accuracy"},
        WHOLE,
        load=load_claims,
        caches=False,
    ),
    Stage.CLASSIFY: Objective(
        {"blip": Learner(_classify, _prepare_classify, Finetuning(_reads_one, ("text",), 2e-5, train_vision=True))},
        is_labelled,
        {EvaluationTask.CLASSIFICATION: "accuracy"},
        WHOLE | {"momentum"},
        keeps_copies=True,
        load=load_claims,
        caches=False,
    ),
    Stage.CONTRAST: Objective(
        {
            "clip": Learner(
                _contrast, finetuning=Finetuning(_any, ("text", "vision"), 1e-5, train_vision=True, batch_size=64)
            )
        },
        is_described,
        {EvaluationTask.RETRIEVAL: "mean"},
        WHOLE | {"mixture"},
        compares=True,
        caches=False,
    ),
}


def objective_of(stage: Stage) -> Objective:
    return OBJECTIVES[stage]


def learner_of(stage: Stage, family: str, name: str) -> Learner:
    """How a model learns in a stage.

    Args:
        name: what the user called the model.

    Raises:
        OptionError: its family has no such stage.
    """
    learners = OBJECTIVES[stage].learners
    if family in learners:
        return learners[family]
    stages = [each.value for each, objective in OBJECTIVES.items() if family in objective.learners]
    if stages:
        raise OptionError(
            f"{name} is of the family {family}, which has no stage {stage.value}: give {_either(stages)}, or a model "
            f"of {_either(learners)}"
        )
    families = dict.fromkeys(each for objective in OBJECTIVES.values() for each in objective.learners)
    raise OptionError(
        f"{name} is of the family {family}, which cannot be trained yet: give a model of {_either(families)}"
    )


def new_model(recipe: Recipe, images: Images, name: str) -> AnyParts:
    """The model that a recipe without `init` begins with: its stage says of which family.

    Raises:
        OpenBlipError: a file that it is made of is missing or broken, or of another model.
    """
    begin = next(each.begin for each in OBJECTIVES[recipe.stage].learners.values() if each.begin is not None)
    return begin(recipe, images, name)


def finetuning_of(parts: AnyParts, name: str, claims: Images = ()) -> tuple[Stage, Finetuning]:
    """The stage in which a model learns from a table of one's own, and how.

    Args:
        name: what the user called the model.
        claims: what the table has, where it has sentences to be judged.

    Raises:
        OptionError: there is none.
    """
    for stage, objective in OBJECTIVES.items():
        learner = objective.learners.get(parts.family)
        judges = objective.load is load_claims
        if judges != bool(claims) or (judges and not any(map(objective.usable, claims))):
            continue
        if learner is not None and learner.finetuning is not None and learner.finetuning.suits(parts):
            return stage, learner.finetuning
    if claims:
        images = "two images" if len(claims[0].images) == 2 else "one image"
        raise OptionError(
            f"{name} cannot learn to judge sentences with {images} each, which the table has: "
            "give a BLIP that matches, embeds or answers, or one that judges such sentences"
        )
    raise OptionError(
        f"{name} can neither caption nor answer, nor match images with texts (ITM), and so learns nothing from a "
        "table: give a model that can, or train it by a recipe"
    )


def unknown_options(recipe: Recipe) -> Iterator[str]:
    """Sentences about keys of a recipe that its stage does not know."""
    own = OBJECTIVES[recipe.stage].options
    for key, stages in _stages_of_keys().items():
        if key not in own and getattr(recipe, key) != _defaults()[key]:
            yield f"{key} is for {_either(stages)}: leave it out of stage {recipe.stage.value}"


@cache
def _stages_of_keys() -> Mapping[str, list[str]]:
    """The keys that only some stages know, in the order of recipes, and those stages."""
    stages = {
        key: [stage.value for stage, objective in OBJECTIVES.items() if key in objective.options] for key in _defaults()
    }
    return {key: found for key, found in stages.items() if found}


@cache
def _defaults() -> Mapping[str, Any]:
    return {
        key.name: key.default_factory() if key.default_factory is not MISSING else key.default for key in fields(Recipe)
    }


def _either(names: Sequence[str] | Mapping[str, Any]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
