"""The keys of a training recipe, with their defaults; `openblip.training.recipe` reads and checks one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from openblip.data.image_files import OnBadImage
from openblip.data.pairs import DataSource
from openblip.training.lora.adapters import LoraSection


class Stage(Enum):
    """What a run trains, and with which loss."""

    LANGUAGE = "language"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    CAPTION = "caption"
    VQA = "vqa"
    RETRIEVAL = "retrieval"
    PRETRAIN = "pretrain"
    NLVR = "nlvr"
    CLASSIFY = "classify"
    CONTRAST = "contrast"


class Precision(Enum):
    """The type of matrix products; weights that learn and losses are float32."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"


class Parallel(Enum):
    """How several processes share a model: each has a copy (DDP), or a part of each weight (FSDP)."""

    DDP = "ddp"
    FSDP = "fsdp"


class Schedule(Enum):
    """How the learning rate falls after a linear warm-up: with each step along a cosine, or as LAVIS' two schedules of
    these names with each epoch.
    """

    COSINE = "cosine"
    EPOCH_COSINE = "linear_warmup_cosine_lr"
    EPOCH_STEP = "linear_warmup_step_lr"


class Storage(Enum):
    """The number format of saved weights; int8 stores large matrices in a quarter of the space."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


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
class NewBlip:
    """A new BLIP as its authors begin pre-training: a ViT of DeiT's weights, and a BERT that reads and writes.

    Attributes:
        vision: path of a ViT of DeiT or timm, such as deit_base_patch16_224-b5f2ef4d.pth. It has its own image size,
            which `image_size` of the recipe changes.
        bert: folder with a BERT's `config.json`, `model.safetensors` and vocabulary, such as bert-base-uncased.
        shared_width: width of the space that images and texts share.
    """

    vision: str
    bert: str
    shared_width: int = 256


@dataclass
class OptimizerSection:
    """AdamW with linear warm-up and cosine decay (BLIP-2: from 1e-6 to the rate, then to 1e-5).

    Attributes:
        schedule: how the learning rate falls. LAVIS' schedules warm up within the first epoch and are constant in each
            later one.
        decay_rate: of linear_warmup_step_lr: what an epoch multiplies the learning rate by, down to `min_lr`.
        clip_norm: longest gradient of all weights together; longer ones are shortened to it; 0: none is.
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
    schedule: Schedule = Schedule.COSINE
    decay_rate: float = 1.0


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
class MomentumSection:
    """Momentum distillation of stages retrieval, pretrain and classify, with LAVIS' numbers.

    Attributes:
        queue_size: embeddings of earlier batches that each image and text is compared with, besides its batch; 0: none.
            Stage classify compares none.
        decay: what the slow copies of the encoders keep of themselves in each batch; LAVIS: momentum.
        alpha: the largest share of the copies' soft targets, reached after two epochs, in stage classify after one; 0
            there: there are no copies.
        negative_all_rank: hard negatives come from all processes; otherwise each process draws from its own part of the
            batch.
    """

    queue_size: int = 57_600
    decay: float = 0.995
    alpha: float = 0.4
    negative_all_rank: bool = True


@dataclass
class Recipe:
    """One training run.

    Attributes:
        output: folder of the trained model; the last part of its path is the name of the model unless `name` is given.
        storage: number format of the weights in that folder.
        init: model to start from, a folder or an official name. Give either `init`, `new` or `new_blip`.
        new: pretrained parts to build a new BLIP-2 from.
        new_blip: pretrained parts to build a new BLIP from, for stage pretrain.
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
        texts_per_image: number of texts of each image in a batch of a stage that learns to write; they share what was
            computed of the image.
        text_tokens: longest text that is compared with images, longest caption with its prompt, or longest question, in
            tokens; longer texts are cut. None: 32, and for BLIP what LAVIS has.
        itm_share: share of each batch that matching (ITM), the most expensive loss of stage 1, uses.
        patch_share: share of the patches of an image that a training step uses; below 1, a small data set is
            memorized less.
        learn_candidates: see `Pairing`.
        ema: decay of a moving average of the weights, which is evaluated and saved; 0: none.
        dropout: of the parts that learn; None: the model's own.
        drop_path: stochastic depth (https://arxiv.org/abs/1603.09382) of a learning vision transformer: the chance that
            the last block's branches are left out; further down it falls to 0. None: the model's own.
        keep_matching: weight of ITC and ITM in stage 2. With 0, as in the paper, the Q-Former forgets how to match.
        self_critical: number of captions to sample for each image in stage 2, which then learns from their CIDEr; 0:
            it imitates the captions of the data.
        momentum: see `MomentumSection`.
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
    new_blip: NewBlip | None = None
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
    text_tokens: int | None = None
    itm_share: float = 1.0
    patch_share: float = 1.0
    learn_candidates: bool = False
    ema: float = 0.0
    dropout: float | None = None
    drop_path: float | None = None
    keep_matching: float = 0.0
    self_critical: int = 0
    log_every: int = 20
    save_every: int = 200
    on_bad_image: OnBadImage = OnBadImage.SKIP
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    mixture: Mixture = field(default_factory=Mixture)
    momentum: MomentumSection = field(default_factory=MomentumSection)
    monitor: MonitorSection = field(default_factory=MonitorSection)
    evaluation: Evaluation = field(default_factory=Evaluation)
    lora: LoraSection | None = None
