"""Read pretrained parts for new models, a BERT or an EfficientNet, and check them before use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from openblip.checkpoints.names.bert import LAYER_NAMES
from openblip.checkpoints.names.efficientnet import efficientnet_from_package
from openblip.checkpoints.tensors.assign import NOT_FINITE, VARIANCE
from openblip.checkpoints.tensors.files import open_weights
from openblip.errors import CheckpointError
from openblip.files import read_text

BERT_FILE, VOCABULARY_FILE = "model.safetensors", "vocab.txt"
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
SEGMENTS = "embeddings.token_type_embeddings.weight"
TABLES = (WORDS, POSITIONS, SEGMENTS)
"""Tables whose number of rows may vary."""
FIRST_FFN = "encoder.layer.0.intermediate.dense.weight"
LAYER = re.compile(r"encoder\.layer\.([0-9]{1,3})\.")
UNKNOWN = "[UNK]"


@dataclass(frozen=True, eq=False)
class Bert:
    """A BERT with all tensors present, finite and of matching shapes.

    Attributes:
        state: tensors of the encoder in float32, `embeddings.*` and `encoder.layer.N.*`.
        pieces: the vocabulary; the word table may have more rows.
    """

    folder: Path
    state: Mapping[str, Tensor]
    pieces: list[str]

    @property
    def width(self) -> int:
        return self.state[WORDS].shape[1]

    @property
    def ffn_width(self) -> int:
        return self.state[FIRST_FFN].shape[0]

    @property
    def depth(self) -> int:
        return 1 + max(int(found[1]) for name in self.state if (found := LAYER.match(name)))

    def check(self, layers: Sequence[int], positions: int) -> None:
        """Raises CheckpointError when one of these layers, or that many positions, are missing."""
        if not all(0 <= layer < self.depth for layer in layers):
            raise CheckpointError(
                f"the BERT in {self.folder} has {self.depth} layers, numbered from 0, but the model needs "
                f"{_shown(layers)}: choose other layers or another BERT"
            )
        if len(self.state[POSITIONS]) < positions:
            raise CheckpointError(
                f"the BERT in {self.folder} has {len(self.state[POSITIONS])} positions, but the model needs "
                f"{positions}: use fewer positions or another BERT"
            )


def _shown(layers: Sequence[int]) -> str:
    return f"layers {layers[0]} to {layers[-1]}" if isinstance(layers, range) else f"layers {list(layers)}"


def read_bert(folder: Path, key: str) -> Bert:
    """Read a folder with model.safetensors and vocab.txt, such as bert-base-uncased.

    Args:
        key: the recipe key that names the folder, for error messages.

    Raises:
        CheckpointError: a file is missing, broken, or not of a BERT.
    """
    for name in (BERT_FILE, VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing: {key} is a folder with {BERT_FILE} and {VOCABULARY_FILE}"
            )
    path = folder / BERT_FILE
    state = {_today(name): tensor for name, tensor in read_floats(path).items()}
    for name in (WORDS, FIRST_FFN):
        if name not in state or state[name].ndim != 2:
            raise CheckpointError(f"{path} is not a BERT: it has no two-dimensional {name}")
    bert = Bert(folder, state, _read_vocabulary(folder / VOCABULARY_FILE, len(state[WORDS])))
    for name, shape in _shapes(bert).items():
        if name not in state:
            raise CheckpointError(f"{path} is an incomplete BERT: {name} is missing")
        found = tuple(state[name].shape)
        if 0 in found or found != ((found[0], *shape) if name in TABLES and found else shape):
            raise CheckpointError(f"{path} is not a consistent BERT: {name} has shape {list(found)}")
    return bert


def read_efficientnet(path: Path, into: nn.Module) -> None:
    """Load the weights of a package's file into an image encoder.

    Raises:
        CheckpointError: the file is missing, broken, or of another EfficientNet.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: new.vision is the file of an EfficientNet-Lite")
    stored = read_floats(path)
    try:
        state = efficientnet_from_package(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not an EfficientNet-Lite of a known package: {error}") from error
    for name, own in into.state_dict().items():
        if name not in state:
            raise CheckpointError(f"{path} is an incomplete EfficientNet: {name} is missing")
        if state[name].shape != own.shape:
            raise CheckpointError(
                f"{path} is not the EfficientNet that its name says: {name} has shape {list(state[name].shape)}, "
                f"not {list(own.shape)}"
            )
    into.load_state_dict(state)


def read_floats(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file as float32. Raises CheckpointError for complex or non-finite values."""
    file = open_weights(path)
    state = {}
    for name in file.shapes:
        tensor = file.read(name)
        if tensor.is_complex():
            raise CheckpointError(f"{path}: {name} has complex numbers: get the file again")
        state[name] = tensor.float()
        if not state[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} {NOT_FINITE}")
        if name.endswith(VARIANCE) and bool((state[name] < 0).any()):
            raise CheckpointError(f"{path}: {name} holds variances below 0: get the file again")
    return state


def _today(name: str) -> str:
    """The current name of a tensor: without the prefix and the old endings of some files."""
    name = name.removeprefix("bert.")
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name


def _shapes(bert: Bert) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a Q-Former takes from a BERT; of tables, the columns."""
    width, ffn = bert.width, bert.ffn_width
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(TABLES, (width,))
    shapes |= dict.fromkeys(("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"), (width,))
    for layer in range(bert.depth):
        for part in LAYER_NAMES.values():
            rows = ffn if part == "intermediate.dense" else width
            columns = ffn if part == "output.dense" else width
            shapes[f"encoder.layer.{layer}.{part}.bias"] = (rows,)
            shapes[f"encoder.layer.{layer}.{part}.weight"] = (rows,) if part.endswith("Norm") else (rows, columns)
    return shapes


def _read_vocabulary(path: Path, rows: int) -> list[str]:
    try:
        # Not splitlines: a token may be one of the other characters that it splits at.
        pieces = read_text(path).removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): get the file again") from error
    if UNKNOWN not in pieces or len(pieces) > rows:
        raise CheckpointError(
            f"{path} has {len(pieces)} lines for a word table of {rows} rows: a vocabulary has one token per line, "
            f"{UNKNOWN} among them, and no more lines than the table has rows"
        )
    return pieces
