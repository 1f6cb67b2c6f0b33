"""A BLIP-2 in LAVIS' files -> a model. Frozen parts are not in a checkpoint: they come from files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from openblip.checkpoints.hub.sources import LocalFile, WebFile
from openblip.checkpoints.model_entry import LANGUAGE, VISION, ModelEntry
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.lavis import VISION_PREFIX, blip2_from_lavis
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.checkpoints.tensors.assign import Placer
from openblip.checkpoints.tensors.files import LET_GO_BYTES, WeightFolder, open_weights, refuse_misfits
from openblip.checkpoints.tensors.wrappers import ENCODER_ROOTS, LANGUAGE_ROOTS, LAVIS_ROOTS, Peeled
from openblip.checkpoints.transformers.tokenizers import read_matching, read_words
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.text import MatchingText, Tokenizer

LONGEST_TEXT = 32
"""LAVIS cuts texts for the Q-Former here."""


@dataclass(frozen=True)
class LavisFiles:
    """Where the parts of one model lie.

    Attributes:
        checkpoint: what LAVIS saved (`blip2_*.pth`, or a run's `checkpoint_best.pth`).
        vision: file of the image encoder (`eva_vit_g.pth`, `clip_vit_L.pth`); may be None when the checkpoint
            has it, as after fine-tuning.
        language: folder of the language model as transformers wrote it, with its vocabulary; None for stage 1.
        words: folder with BERT's vocabulary; None for stage 2.
    """

    checkpoint: Path
    vision: Path | None = None
    language: Path | None = None
    words: Path | None = None


def load_lavis(model: ModelEntry, files: LavisFiles, options: ReadOptions = DEFAULT_OPTIONS) -> ModelParts:
    """An official model from its files, or from a checkpoint that was trained from it.

    Raises:
        CheckpointError: a file is missing, broken or does not fit; it is named, with the tensors.
    """
    config: Blip2Config = model.config()
    network = read_lavis(config, files, options)
    matching: MatchingText | None = None
    tokenizer: Tokenizer | None = None
    if config.qformer.vocab_size:
        matching = read_matching(_given(files.words, "BERT's vocabulary"), LONGEST_TEXT, config.qformer.vocab_size)
    if config.own_language is not None:
        folder = _given(files.language, "the language model's vocabulary")
        known = LANGUAGES[config.own_language.kind]
        tokenizer = read_words(folder, known.start_id, known.pad_id, config.own_language.vocab_size)
    transform = ImageTransform(model.image_size)
    return ModelParts(model.name, network, transform, matching, tokenizer, model.templates(), model.defaults())


def files_of(found: Sequence[LocalFile], checkpoint: Path | None = None) -> LavisFiles:
    """Which of a LAVIS model's downloaded sources is what.

    Args:
        checkpoint: a file to read instead of the official one.
    """
    official = next(file.path for file in found if isinstance(file.source, WebFile))
    folders = [file for file in found if not isinstance(file.source, WebFile)]
    return LavisFiles(
        checkpoint=checkpoint or official,
        vision=next((file.path for file in found[1:] if file.source.supplies == (VISION,)), None),
        language=next((file.path for file in folders if LANGUAGE in file.source.supplies), None),
        words=next((file.path for file in folders if not file.source.supplies), None),
    )


def read_lavis(config: Blip2Config, files: LavisFiles, options: ReadOptions = DEFAULT_OPTIONS) -> Blip2Network:
    """The network alone, in evaluation mode. Tensors stay on disk until each is cast or quantized into its place.

    What the options leave out stays on disk.

    Raises:
        CheckpointError: see `load_lavis`.
    """
    saved = Peeled(open_weights(files.checkpoint), LAVIS_ROOTS)
    opened: list[Peeled | WeightFolder] = [saved]
    state = {name: saved.read(name) for name in saved.shapes}
    if not any(name.startswith(VISION_PREFIX) for name in state):
        path = _given(files.vision, f"the image encoder, which {files.checkpoint} lacks because it was frozen,")
        encoder = Peeled(open_weights(path), ENCODER_ROOTS)
        opened.append(encoder)
        state |= {VISION_PREFIX + name: encoder.read(name) for name in encoder.shapes}
    prefix = "" if config.own_language is None else LANGUAGES[config.own_language.kind].lavis_prefix
    if prefix and sum(name.startswith(prefix) for name in state) <= len(TIED_STRAYS):
        folder = _given(files.language, f"the language model, which {files.checkpoint} lacks because it was frozen,")
        weights = WeightFolder(folder, LANGUAGE_ROOTS)
        opened.append(weights)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        state |= {prefix + name: weights.read(name) for name in weights.shapes}
    try:
        renamed = blip2_from_lavis(state, config)
    except CheckpointError as error:
        places = " with ".join(str(path) for path in (files.checkpoint, files.vision, files.language) if path)
        raise CheckpointError(f"{places}: {error}") from error
    network = empty_network(config, files.checkpoint)
    placer = Placer(network, files.checkpoint, options, lambda name: f"{_supplier(name, files)}: {name}")
    _check_fit(placer.wanted, renamed, files)
    read = 0
    for name in placer.to_put:
        read += renamed[name].nbytes
        placer.put(name, renamed.pop(name))
        if read > LET_GO_BYTES:
            read = 0
            for file in opened:
                file.let_go()
    return placer.finish()


TIED_STRAYS = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""All that a checkpoint may carry of a language model that was frozen: tables tied to others."""


def _check_fit(wanted: dict[str, tuple[int, ...]], found: dict[str, Tensor], files: LavisFiles) -> None:
    misfits = [f"{name} is missing from {_supplier(name, files).name}" for name in wanted if name not in found]
    misfits += [f"{name} is unknown" for name in found if name not in wanted]
    misfits += [
        f"{name} in {_supplier(name, files).name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    refuse_misfits(files.checkpoint, misfits)


def _supplier(name: str, files: LavisFiles) -> Path:
    """The file, or the folder of the language model, that should hold a tensor of ours."""
    part = name.partition(".")[0]
    path = {"vision": files.vision, **{known.config.prefix: files.language for known in LANGUAGES.values()}}.get(part)
    return path or files.checkpoint


def _given(path: Path | None, what: str) -> Path:
    if path is None:
        raise CheckpointError(f"{what} comes from a file of its own: name it, or load the model by its name")
    return path
