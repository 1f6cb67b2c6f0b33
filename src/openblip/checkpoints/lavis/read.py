"""A BLIP-2 in LAVIS' files -> a model. Frozen parts are not in a checkpoint: they come from files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from openblip.checkpoints.hub.sources import LocalFile, WebFile
from openblip.checkpoints.model_entry import LANGUAGE, VISION, ModelEntry
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.engine import Plan
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.lavis import VISION_PREFIX, lavis_layout
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
        language = LANGUAGES[config.own_language.kind]
        tokenizer = read_words(folder, language.start_id, language.pad_id, config.own_language.vocab_size)
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
    weights = _open(config, files)
    places = " with ".join(str(path) for path in (files.checkpoint, files.vision, files.language) if path)
    try:
        plan = lavis_layout(config).plan(weights.shapes)
        plan.check_repeats(weights.read)
    except CheckpointError as error:
        raise CheckpointError(f"{places}: {error}") from error
    network = empty_network(config, files.checkpoint)
    placer = Placer(network, files.checkpoint, options, lambda name: f"{_supplier(name, files)}: {name}")
    _check_fit(placer.wanted, plan, weights, files)
    read = 0
    for name in placer.to_put:
        pieces = plan.pieces(name, weights.read)
        placer.put(name, *pieces)
        read += sum(piece.nbytes for piece in pieces)
        if read > LET_GO_BYTES:
            read = 0
            weights.let_go()
    return placer.finish()


class _Together:
    """Files of one model under the names that a checkpoint with everything in it has."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, tuple[Peeled | WeightFolder, str]] = {}

    def add(self, file: Peeled | WeightFolder, prefix: str = "", left_out: tuple[str, ...] = ()) -> None:
        for name, shape in file.shapes.items():
            if not name.startswith(left_out):
                self.shapes[prefix + name] = shape
                self._files[prefix + name] = file, name

    def read(self, name: str) -> Tensor:
        file, own = self._files[name]
        return file.read(own)

    def let_go(self) -> None:
        """As `SafetensorsFile.let_go`."""
        for file in {id(file): file for file, _ in self._files.values()}.values():
            file.let_go()


def _open(config: Blip2Config, files: LavisFiles) -> _Together:
    """The checkpoint, with the files of those frozen parts that it lacks."""
    saved = Peeled(open_weights(files.checkpoint), LAVIS_ROOTS)
    weights = _Together()
    prefix = "" if config.own_language is None else LANGUAGES[config.own_language.kind].lavis_prefix
    lacks_language = bool(prefix) and sum(name.startswith(prefix) for name in saved.shapes) <= len(TIED_STRAYS)
    weights.add(saved, left_out=(prefix,) if lacks_language else ())
    if not any(name.startswith(VISION_PREFIX) for name in saved.shapes):
        path = _given(files.vision, f"the image encoder, which {files.checkpoint} lacks because it was frozen,")
        weights.add(Peeled(open_weights(path), ENCODER_ROOTS), VISION_PREFIX)
    if lacks_language:
        folder = _given(files.language, f"the language model, which {files.checkpoint} lacks because it was frozen,")
        weights.add(WeightFolder(folder, LANGUAGE_ROOTS), prefix)
    return weights


TIED_STRAYS = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""All that a checkpoint may carry of a language model that was frozen: tables tied to others."""


def _check_fit(wanted: dict[str, tuple[int, ...]], plan: Plan, weights: _Together, files: LavisFiles) -> None:
    """Compare names and shapes before a tensor is read."""
    misfits = [f"{name} is missing from {_supplier(name, files).name}" for name in wanted if name not in plan.rows]
    misfits += [f"{name} is unknown" for name in plan.rows if name not in wanted]
    for name, shape in wanted.items():
        rows = plan.rows.get(name, ())
        for row in rows:
            part = row.stored_shape(shape, len(rows))
            found = weights.shapes[row.name]
            if found != part:
                misfits.append(f"{name} in {_supplier(name, files).name} is {list(found)}, not {list(part)}")
    refuse_misfits(files.checkpoint, misfits)


def _supplier(name: str, files: LavisFiles) -> Path:
    """The file, or the folder of the language model, that should hold a tensor of ours."""
    part = name.partition(".")[0]
    path = {"vision": files.vision, **{language.config.prefix: files.language for language in LANGUAGES.values()}}.get(
        part
    )
    return path or files.checkpoint


def _given(path: Path | None, what: str) -> Path:
    if path is None:
        raise CheckpointError(f"{what} comes from a file of its own: name it, or load the model by its name")
    return path
