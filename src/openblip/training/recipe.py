"""The recipe: one YAML file says everything about a training run, and every key is checked.

Files are read with OmegaConf, so `key=value` overrides work with dots (`optimizer.lr=1e-4`) and one value
may refer to another (`${seed}`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from openblip.data.image_files import OnBadImage
from openblip.data.pairs import DataSource
from openblip.errors import OptionError
from openblip.recipes import read_recipe
from openblip.training.lora.adapters import LoraSection
from openblip.training.metrics import ANSWERS, CAPTIONS, RECALLS, is_possible


class Stage(Enum):
    """What a run trains and by which loss."""

    LANGUAGE = "language"
    STAGE1 = "stage1"
    STAGE2 = "stage2"


class Precision(Enum):
    """Arithmetic of matrix products; what learns has float32 weights, and losses are float32."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"


class Parallel(Enum):
    """How several processes share a model: each has all of it (DDP), or a part of each weight (FSDP)."""

    DDP = "ddp"
    FSDP = "fsdp"


class Storage(Enum):
    """How `save_native` stores weights: int8 keeps large matrices in a quarter of the space."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass
class NewModel:
    """A model put together from pretrained parts, instead of one loaded from a folder.

    Attributes:
        vision: path of an EfficientNet-Lite `.pth`; its name says which (…lite0…, …lite1…, …lite2…).
        bert: folder with a BERT's `model.safetensors` and `vocab.txt`.
        bert_layers: which of its layers become the Q-Former's.
        qformer_vocab, decoder_vocab: sizes of the vocabularies, learnt from the recipe's data.
    """

    vision: str
    bert: str
    image_size: int = 288
    place_width: int = 64
    bert_layers: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    num_queries: int = 16
    shared_width: int = 256
    qformer_vocab: int = 5000
    decoder_vocab: int = 5000
    decoder_width: int = 320
    decoder_depth: int = 5
    decoder_heads: int = 5
    decoder_ffn: int = 1280
    decoder_dropout: float = 0.1
    max_text_tokens: int = 32
    max_positions: int = 256


@dataclass
class OptimizerSection:
    """AdamW with linear warm-up and cosine decay (BLIP-2: from 1e-6 to the rate, then to 1e-5).

    Attributes:
        vision_layer_decay: what each block of an image encoder that learns has of the rate of the next one above it;
            1 lets all learn alike (BLIP-2's fine-tuning: 0.95).
        vision_rate: what an image encoder that learns has of the rate, in all its blocks.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 200
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0
    vision_layer_decay: float = 1.0
    vision_rate: float = 1.0


@dataclass
class MonitorSection:
    """Where a run reports to, besides curves.csv, curves.png and the progress bar.

    Attributes:
        tensorboard: write event files to `output`/tensorboard, where TensorBoard is installed.
        wandb: Weights & Biases project to report to; nothing is sent anywhere without one.
    """

    tensorboard: bool = True
    wandb: str | None = None


@dataclass
class Evaluation:
    """What a run is evaluated on as it goes.

    Attributes:
        data: rows that it does not learn from, of a source with `held_out` the held-out ones; None: it is not
            evaluated.
        every: epochs between evaluations.
        limit: rows to look at.
        metric: what is to grow, a name in the table of `openblip evaluate`; None: CIDEr of captions, the accuracy of
            answers, or the mean recall of stage 1.
        samples: captions or answers to show.
        patience: evaluations without a better one after which the run stops; 0 never. The best weights are kept.
    """

    data: DataSource | None = None
    every: int = 1
    limit: int = 200
    num_beams: int = 3
    metric: str | None = None
    samples: int = 4
    patience: int = 0


@dataclass
class Mixture:
    """Shares of the texts that a stage-2 or language batch is made of.

    Attributes:
        questions: share of examples that are a question with its answer, for images that have both.
        made_questions: share of those questions that were made from captions, where there are both kinds.
        statements: share of captions that were made from questions, where there are both; 0 makes no
            use of statements at all when there is a question to ask instead.
    """

    questions: float = 0.0
    made_questions: float = 0.5
    statements: float = 0.0


@dataclass
class Recipe:
    """One training run.

    Attributes:
        output: folder of the trained model; its last part is the model's name unless `name` says another.
        storage: number format of the weights in that folder.
        init: model to start from, a folder or an official name; or `new` to put one together. Exactly one of the two.
        fresh_qformer: folder of a BERT (model.safetensors, vocab.txt) from which the Q-Former of `init` begins again,
            as in the paper's stage 1.
        image_size: side of the square images, where it is to be another than the model's own.
        prompt: what captions begin with in stage 2; None is the model's own.
        decoder: another model folder that the language model is taken from.
        language_model: any other frozen language model to put behind the Q-Former in stage 2: a folder that
            transformers wrote, or a repository of the hub. It is external: the trained model holds no copy of it.
        language_model_revision: branch, tag or commit of that repository.
        train_decoder: let the language model learn in stage 2, too (the paper keeps it frozen).
        train_vision: let the image encoder learn, too, as in fine-tuning for COCO captions.
        vision_blocks: how many of its last blocks learn then; 0: all of it. What the others, which stay frozen, give
            is kept on disk as the features of a frozen encoder are.
        gradient_checkpointing: compute what an image encoder that learns gives once more on the way back, rather than
            keep it: less memory, a third more time.
        cache: folder for the features of an encoder, or of blocks, that are frozen; null: images are cropped and
            encoded anew at every step, as in the paper.
        epochs: passes over the images.
        steps_per_epoch: steps of an epoch, where a data source is streamed that does not say how many rows it has.
        batch_size: images of a batch, over all processes: their number changes nothing but the time.
        accumulate: batches a step of the optimizer learns from; contrast stays within each.
        precision: of the image encoder and the language model; fp16 scales its losses.
        qformer_precision: of the Q-Former and the heads on top of it.
        device: "cpu", "cuda"; None: CUDA where there is one.
        parallel: how several processes, started by torchrun or accelerate launch, share the model.
        texts_per_image: texts that a language or stage-2 batch takes of each image; in stage 2 they share its
            visual prompt.
        text_tokens: longest text in stage 1, in tokens; longer ones are cut.
        itm_share: share of each batch that matching (ITM), the costliest loss of stage 1, looks at.
        patch_share: share of an image's patches that a step of training looks at; less than all guards a small
            data set against being learnt by heart.
        learn_candidates: see `Pairing`.
        ema: decay of a moving average of the weights, which is then what is evaluated and saved; 0 for none.
        dropout: of the parts that learn; None is the model's own.
        keep_matching: weight of ITC and ITM in stage 2. Without them (0, as in the paper, which keeps a model a
            stage) the Q-Former learns to describe and forgets how to match.
        self_critical: captions to draw for each image in stage 2, which learns from their CIDEr instead of
            imitating the captions of the data; 0 imitates.
        save_every: steps between checkpoints to resume from.
        lora: low-rank adapters that learn instead of the stage's own parts; `output` then holds them alone, in peft's
            layout, and `openblip merge` makes a model of them.
        on_bad_image: what to do about images that cannot be read.
    """

    stage: Stage
    output: str
    data: list[DataSource]
    data_root: str = "data"
    name: str | None = None
    storage: Storage = Storage.FLOAT32
    init: str | None = None
    new: NewModel | None = None
    fresh_qformer: str | None = None
    image_size: int | None = None
    prompt: str | None = None
    decoder: str | None = None
    language_model: str | None = None
    language_model_revision: str | None = None
    train_decoder: bool = False
    train_vision: bool = False
    vision_blocks: int = 0
    gradient_checkpointing: bool = False
    cache: str | None = "runs/features"
    epochs: int = 10
    steps_per_epoch: int = 0
    batch_size: int = 64
    accumulate: int = 1
    seed: int = 42
    precision: Precision = Precision.FLOAT32
    qformer_precision: Precision = Precision.FLOAT32
    device: str | None = None
    parallel: Parallel = Parallel.DDP
    threads: int = 0
    texts_per_image: int = 1
    text_tokens: int = 32
    itm_share: float = 1.0
    patch_share: float = 1.0
    learn_candidates: bool = False
    ema: float = 0.0
    dropout: float | None = None
    keep_matching: float = 0.0
    self_critical: int = 0
    log_every: int = 20
    save_every: int = 200
    on_bad_image: OnBadImage = OnBadImage.SKIP
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    mixture: Mixture = field(default_factory=Mixture)
    monitor: MonitorSection = field(default_factory=MonitorSection)
    evaluation: Evaluation = field(default_factory=Evaluation)
    lora: LoraSection | None = None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides.

    Raises:
        OpenBlipError: omegaconf is not installed, the file is missing, or a key or value is wrong.
    """
    recipe = read_recipe(Recipe, path, overrides, "training", "train")
    for problem in problems_of(recipe):
        raise OptionError(f"{path}: {problem}")
    return recipe


def problems_of(recipe: Recipe) -> Iterator[str]:
    """What contradicts itself, or is out of range."""
    if (recipe.init is None) == (recipe.new is None):
        yield "give either init (a model folder) or new (a model to put together)"
    yield from _out_of_range(recipe)
    if recipe.language_model is not None and recipe.stage is not Stage.STAGE2:
        yield "a language_model is put behind the Q-Former in stage2: leave it out before"
    if recipe.self_critical == 1:
        yield "self_critical is 1: an image's captions are compared, draw at least 2"
    if recipe.qformer_precision is Precision.FP16:
        yield "qformer_precision is fp16, in which the Q-Former overflows: use float32 or bf16"
    if recipe.train_vision and recipe.stage is Stage.LANGUAGE:
        yield "train_vision is for stages that see: leave it out of stage language"
    if recipe.vision_blocks and not recipe.train_vision:
        yield "vision_blocks says how much of the image encoder learns, and none does: give train_vision=true"
    if recipe.lora is not None and (recipe.train_vision or recipe.train_decoder or recipe.stage is Stage.LANGUAGE):
        yield "with lora adapters alone learn: leave out train_vision and train_decoder, and name them in lora.targets"
    if recipe.lora is not None and recipe.stage is Stage.STAGE1 and "language_model" in recipe.lora.targets:
        yield "lora.targets names language_model, which stage1 does not use: name qformer or vision"
    if recipe.stage is not Stage.STAGE2:
        for name in ("train_decoder", "keep_matching", "self_critical"):
            if getattr(recipe, name):
                yield f"{name} is for stage2: leave it out of stage {recipe.stage.value}"
    if recipe.stage is Stage.STAGE1 and recipe.batch_size == 1:
        yield "batch_size is 1: stage1 compares the images of a batch, give at least 2"
    metric, matching = recipe.evaluation.metric, recipe.stage is Stage.STAGE1
    if metric is not None and not is_possible(metric, matching):
        metrics = RECALLS if matching else (*CAPTIONS, *ANSWERS)
        yield f"evaluation.metric is {metric!r}: it is none of {', '.join(metrics)}"
    if recipe.evaluation.patience and recipe.evaluation.data is None:
        yield "evaluation.patience waits for evaluations, and there are none: give evaluation.data"
    if not recipe.data:
        yield "data lists no source"
    if not recipe.output.strip():
        yield "output is empty: name a folder for the trained model"
    yield from _about_streams(recipe)


def caches_features(recipe: Recipe) -> bool:
    """Whether what is frozen of the image encoder is computed once and kept; if no adapters are found to go there."""
    frozen = not recipe.train_vision or recipe.vision_blocks > 0
    return recipe.cache is not None and frozen and recipe.stage is not Stage.LANGUAGE


def _about_streams(recipe: Recipe) -> Iterator[str]:
    """What does not go with data whose rows nobody knows before they come."""
    streamed = [source for source in recipe.data if source.stream]
    if recipe.evaluation.data is not None and recipe.evaluation.data.stream:
        yield "evaluation.data is read as a whole: leave stream out of it"
    if not streamed:
        if recipe.steps_per_epoch:
            yield "steps_per_epoch is for data that are streamed: others have as many as their images make"
        return
    for source in streamed:
        if source.table is None or source.captions or source.questions or source.dataset:
            yield f"{source.name} is streamed, which is for tars: name them as its table"
        if source.split is not None:
            yield f"{source.name} is streamed, and tars have no splits: leave split out"
        if not source.rows and len(recipe.data) > 1:
            yield f"rows of {source.name} is missing: sources are mixed by how many rows they have"
        if not source.rows and not recipe.steps_per_epoch:
            yield (
                f"nobody knows how long an epoch of {source.name} is, which is streamed: give steps_per_epoch, "
                "or rows of the source"
            )
    if recipe.stage is Stage.LANGUAGE or recipe.new is not None or recipe.self_critical:
        yield "stage language, new and self_critical need all texts before the first step: leave stream out"
    if caches_features(recipe):
        yield "features on disk are computed before the first step, and a stream's images come later: give cache=null"


def _out_of_range(recipe: Recipe) -> Iterator[str]:
    """Numbers that a run would fail of, or make nonsense of; NaN is in no range."""
    optimizer, mixture, evaluation = recipe.optimizer, recipe.mixture, recipe.evaluation
    if not -(2**63) <= recipe.seed < 2**63:
        yield f"seed is {recipe.seed}: it must fit 64 bits"
    least = {
        1: ["epochs", "batch_size", "accumulate", "texts_per_image", "text_tokens", "log_every", "save_every"],
        0: ["threads", "keep_matching", "self_critical", "steps_per_epoch", "vision_blocks"],
    }
    whole = [(name, getattr(recipe, name), low) for low, names in least.items() for name in names]
    whole += [(f"evaluation.{name}", getattr(evaluation, name), 1) for name in ("every", "limit", "num_beams")]
    whole += [(f"evaluation.{name}", getattr(evaluation, name), 0) for name in ("samples", "patience")]
    names = ("min_lr", "warmup_lr", "warmup_steps", "weight_decay")
    whole += [(f"optimizer.{name}", getattr(optimizer, name), 0) for name in names]
    for source in recipe.data:
        whole += [
            (f"{name} of {source.name}", getattr(source, name), 1) for name in ("views", "repeat", "shuffle", "readers")
        ]
        whole += [(f"rows of {source.name}", source.rows, 0)]
        if source.held_out < 0 or source.held_out == 1:
            yield f"held_out of {source.name} is {source.held_out}: one image in so many is left out, 0 leaves all in"
    for name, value, low in whole:
        if not low <= value < math.inf:
            yield f"{name} is {value}: it must be at least {low}"
    for name in ("lr", "clip_norm"):
        if not 0 < getattr(optimizer, name) < math.inf:
            yield f"optimizer.{name} is {getattr(optimizer, name)}: it must be above 0, and finite"
    shares = [("patch_share", recipe.patch_share), ("itm_share", recipe.itm_share)]
    shares += [("optimizer.vision_layer_decay", optimizer.vision_layer_decay)]
    shares += [("optimizer.vision_rate", optimizer.vision_rate)]
    shares += [(f"min_area of {source.name}", source.min_area) for source in recipe.data]
    for name, share in shares:
        if not 0 < share <= 1:
            yield f"{name} is {share}: it must be above 0 and at most 1"
    rates = [("ema", recipe.ema), ("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)]
    if recipe.dropout is not None:
        rates += [("dropout", recipe.dropout)]
    rates += [(f"word_dropout of {source.name}", source.word_dropout) for source in recipe.data]
    for name, rate in rates:
        if not 0 <= rate < 1:
            yield f"{name} is {rate}: it must be at least 0 and below 1"
    for name in ("questions", "made_questions", "statements"):
        if not 0 <= getattr(mixture, name) <= 1:
            yield f"mixture.{name} is {getattr(mixture, name)}: it must be from 0 to 1"
