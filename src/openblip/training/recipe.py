"""The recipe: one YAML file says everything about a training run, and every key is checked.

Files are read with OmegaConf, so `key=value` overrides work with dots (`optimizer.lr=1e-4`) and one value
may refer to another (`${seed}`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from openblip.data.pairs import DataSource
from openblip.errors import OptionError
from openblip.recipes import read_recipe


class Stage(Enum):
    """What a run trains and by which loss."""

    LANGUAGE = "language"
    STAGE1 = "stage1"
    STAGE2 = "stage2"


class Precision(Enum):
    """Arithmetic of matrix products; weights, optimizer and losses stay float32."""

    FLOAT32 = "float32"
    BF16 = "bf16"


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
    """AdamW with linear warm-up and cosine decay (BLIP-2: from 1e-6 to the rate, then to 1e-5)."""

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 200
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0


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
        decoder: another model folder that the language model is taken from.
        language_model: any other frozen language model to put behind the Q-Former in stage 2: a folder that
            transformers wrote, or a repository of the hub. It is borrowed: the trained model holds no copy of it.
        language_model_revision: branch, tag or commit of that repository.
        train_decoder: let the language model learn in stage 2, too (the paper keeps it frozen).
        cache: folder for the frozen encoder's features.
        epochs: passes over the images.
        texts_per_image: texts that a language or stage-2 batch takes of each image; in stage 2 they share its
            visual prompt.
        text_tokens: longest text in stage 1, in tokens; longer ones are cut.
        itm_share: share of each batch that matching (ITM), the costliest loss of stage 1, looks at.
        patch_share: share of an image's patches that a step of training looks at; less than all guards a small
            data set against being learnt by heart.
        dropout: of the parts that learn; None is the model's own.
        keep_matching: weight of ITC and ITM in stage 2. Without them (0, as in the paper, which keeps a model a
            stage) the Q-Former learns to describe and forgets how to match.
        self_critical: captions to draw for each image in stage 2, which learns from their CIDEr instead of
            imitating the captions of the data; 0 imitates.
        save_every: steps between checkpoints to resume from.
    """

    stage: Stage
    output: str
    data: list[DataSource]
    data_root: str = "data"
    name: str | None = None
    storage: Storage = Storage.FLOAT32
    init: str | None = None
    new: NewModel | None = None
    decoder: str | None = None
    language_model: str | None = None
    language_model_revision: str | None = None
    train_decoder: bool = False
    cache: str = "runs/features"
    epochs: int = 10
    batch_size: int = 64
    seed: int = 42
    precision: Precision = Precision.FLOAT32
    threads: int = 0
    texts_per_image: int = 1
    text_tokens: int = 32
    itm_share: float = 1.0
    patch_share: float = 1.0
    dropout: float | None = None
    keep_matching: float = 0.0
    self_critical: int = 0
    log_every: int = 20
    save_every: int = 200
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    mixture: Mixture = field(default_factory=Mixture)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides.

    Raises:
        OpenBlipError: omegaconf is not installed, the file is missing, or a key or value is wrong.
    """
    recipe = read_recipe(Recipe, path, overrides, "training", "train")
    if (recipe.init is None) == (recipe.new is None):
        raise OptionError(f"{path}: give either init (a model folder) or new (a model to put together)")
    if not 0 < recipe.patch_share <= 1:
        raise OptionError(f"{path}: patch_share is {recipe.patch_share}: it must be above 0 and at most 1")
    if recipe.dropout is not None and not 0 <= recipe.dropout < 1:
        raise OptionError(f"{path}: dropout is {recipe.dropout}: it must be at least 0 and below 1")
    if recipe.language_model is not None and recipe.stage is not Stage.STAGE2:
        raise OptionError(f"{path}: a language_model is put behind the Q-Former in stage2: leave it out before")
    if recipe.self_critical == 1:
        raise OptionError(f"{path}: self_critical is 1: an image's captions are compared, draw at least 2")
    if not recipe.data:
        raise OptionError(f"{path}: data lists no source")
    return recipe
