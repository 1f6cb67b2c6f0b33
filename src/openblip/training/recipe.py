"""The recipe of a training run: a YAML file, of which every key is checked.

Recipes are read with OmegaConf, so overrides may have dots (`optimizer.lr=1e-4`), and a value may refer to another one
(`${seed}`).
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
    """What a run trains, and with which loss."""

    LANGUAGE = "language"
    STAGE1 = "stage1"
    STAGE2 = "stage2"


class Precision(Enum):
    """The type of matrix products; weights that learn and losses are float32."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"


class Parallel(Enum):
    """How several processes share a model: each has a copy (DDP), or a part of each weight (FSDP)."""

    DDP = "ddp"
    FSDP = "fsdp"


class Storage(Enum):
    """The number format of saved weights; int8 stores large matrices in a quarter of the space."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


MOST_REPEATS = 100_000
"""Of an image in an epoch, whose order is drawn as a whole."""


@dataclass
class NewModel:
    """A new model, built from pretrained parts.

    Attributes:
        vision: path of an EfficientNet-Lite `.pth`; its name says which (…lite0…, …lite1…, …lite2…).
        bert: folder with a BERT's `model.safetensors` and `vocab.txt`.
        bert_layers: the layers of the BERT that become the layers of the Q-Former.
        qformer_vocab, decoder_vocab: sizes of the vocabularies, which are made from the texts of the data.
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
        vision_layer_decay: factor from the learning rate of a block of the image encoder to that of the block below it;
            1: all blocks have the same rate (BLIP-2's fine-tuning: 0.95).
        vision_rate: factor for the learning rate of the whole image encoder.
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
        tensorboard: write event files to `output`/tensorboard, if TensorBoard is installed.
        wandb: the Weights & Biases project to report to; None: nothing is sent.
    """

    tensorboard: bool = True
    wandb: str | None = None


@dataclass
class Evaluation:
    """The evaluation during a run.

    Attributes:
        data: the data set; only held-out rows if the source has `held_out`. None: no evaluation.
        every: epochs between evaluations.
        limit: most rows to evaluate.
        metric: the metric by which the best weights are chosen, a name in the table of `openblip evaluate`; None: CIDEr
            of captions, the accuracy of answers, or the mean recall in stage 1.
        samples: number of captions or answers to show.
        patience: the run stops after this many evaluations without improvement; 0: never. The best weights are kept.
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
    """The mixture of texts in a batch of stage 2 or of stage language.

    Attributes:
        questions: share of questions with their answers, for images that have questions and captions.
        made_questions: share of these questions that were made from captions, for images that have both kinds.
        statements: share of captions that were made from questions, for images that have both kinds; 0: statements
            are not used if there is a question.
    """

    questions: float = 0.0
    made_questions: float = 0.5
    statements: float = 0.0


@dataclass
class Recipe:
    """One training run.

    Attributes:
        output: folder of the trained model; the last part of its path is the name of the model unless `name` is given.
        storage: number format of the weights in that folder.
        init: model to start from, a folder or an official name. Give either `init` or `new`.
        new: pretrained parts to build a new model from.
        fresh_qformer: folder of a BERT (model.safetensors, vocab.txt) that the Q-Former of `init` starts from again, as
            in stage 1 of the paper.
        image_size: side of the square images; None: the model's own.
        prompt: the beginning of captions in stage 2; None: the model's own.
        decoder: another model folder, whose language model is used.
        language_model: any other frozen language model behind the Q-Former in stage 2: a folder of transformers, or
            a repository of the hub. It is external: the trained model does not contain a copy of it.
        language_model_revision: branch, tag or commit of that repository.
        train_decoder: let the language model learn in stage 2, too (it is frozen in the paper).
        train_vision: let the image encoder learn, too, as in fine-tuning for COCO captions.
        vision_blocks: with `train_vision`, number of last blocks that learn; 0: all. The output of the frozen blocks
            is cached like the features of a frozen encoder.
        gradient_checkpointing: compute the activations of a learning image encoder again in the backward pass
            instead of storing them: less memory, a third more time.
        cache: folder for the features of a frozen encoder or of frozen blocks; null: images are cropped and encoded
            again at every step, as in the paper.
        epochs: passes over the images.
        steps_per_epoch: steps of an epoch, for a streamed source whose number of rows is unknown.
        batch_size: images of a batch, over all processes; the number of processes does not change the result.
        accumulate: batches for each step of the optimizer; ITC compares within each batch.
        precision: type of the image encoder and the language model; with fp16, losses are scaled.
        qformer_precision: type of the Q-Former and its heads.
        device: "cpu" or "cuda"; None: CUDA if there is a GPU.
        parallel: how several processes, started by torchrun or accelerate launch, share the model.
        texts_per_image: number of texts of each image in a batch of stage language or stage 2; in stage 2, they share
            the visual prompt.
        text_tokens: longest text in stage 1, in tokens; longer texts are cut.
        itm_share: share of each batch that matching (ITM), the most expensive loss of stage 1, uses.
        patch_share: share of the patches of an image that a training step uses; below 1, a small data set is
            memorized less.
        learn_candidates: see `Pairing`.
        ema: decay of a moving average of the weights, which is evaluated and saved; 0: none.
        dropout: of the parts that learn; None: the model's own.
        keep_matching: weight of ITC and ITM in stage 2. With 0, as in the paper, the Q-Former forgets how to match.
        self_critical: number of captions to sample for each image in stage 2, which then learns from their CIDEr; 0:
            it imitates the captions of the data.
        save_every: steps between checkpoints.
        lora: low-rank adapters that learn instead of the parts of the stage; `output` then has only the adapters, in
            peft's layout, and `openblip merge` merges them into a model.
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
    """Sentences about contradictions and values out of range."""
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
    """Whether the output of the frozen part of the image encoder is cached, unless adapters go there."""
    frozen = not recipe.train_vision or recipe.vision_blocks > 0
    return recipe.cache is not None and frozen and recipe.stage is not Stage.LANGUAGE


def _about_streams(recipe: Recipe) -> Iterator[str]:
    """Sentences about settings that exclude streamed sources."""
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
    """Sentences about numbers out of range; NaN is always out of range."""
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
        if source.repeat > MOST_REPEATS:
            yield f"repeat of {source.name} is {source.repeat}: it must be at most {MOST_REPEATS:,}"
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
