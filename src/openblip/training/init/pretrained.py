"""Files of pretrained parts that a new model begins with, checked before they are used: a BERT, an EfficientNet."""

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
"""With any number of rows."""
FIRST_FFN = "encoder.layer.0.intermediate.dense.weight"
LAYER = re.compile(r"encoder\.layer\.([0-9]{1,3})\.")
UNKNOWN = "[UNK]"


@dataclass(frozen=True, eq=False)
class Bert:
    """A BERT whose tensors are all there, of fitting shapes and finite.

    Attributes:
        state: tensors of its encoder in float32, `embeddings.*` and `encoder.layer.N.*`.
        pieces: its vocabulary; the table of words may have further rows.
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
        """Raises CheckpointError when it lacks one of these layers, or so many positions."""
        if not all(0 <= layer < self.depth for layer in layers):
            raise CheckpointError(
                f"the BERT in {self.folder} has {self.depth} layers, numbered from 0, and {list(layers)} are wanted: "
                "give another BERT or other layers"
            )
        if len(self.state[POSITIONS]) < positions:
            raise CheckpointError(
                f"the BERT in {self.folder} has {len(self.state[POSITIONS])} positions, and {positions} are wanted: "
                "give another BERT or fewer"
            )


def read_bert(folder: Path, key: str) -> Bert:
    """Read a folder with model.safetensors and vocab.txt, such as one of bert-base-uncased.

    Args:
        key: of the recipe, which gives the folder.

    Raises:
        CheckpointError: a file is missing or broken, or of another model.
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
            raise CheckpointError(f"{path} holds no BERT: it has no {name} of two dimensions")
    bert = Bert(folder, state, _read_vocabulary(folder / VOCABULARY_FILE, len(state[WORDS])))
    for name, shape in _shapes(bert).items():
        if name not in state:
            raise CheckpointError(f"{path} is no whole BERT: {name} is missing")
        found = tuple(state[name].shape)
        if 0 in found or found != ((found[0], *shape) if name in TABLES and found else shape):
            raise CheckpointError(f"{path} is no BERT of one width: {name} is {list(found)}")
    return bert


def read_efficientnet(path: Path, into: nn.Module) -> None:
    """Give an image encoder the weights of a package's file.

    Raises:
        CheckpointError: the file is missing or broken, or of another EfficientNet.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: new.vision is the file of an EfficientNet-Lite")
    stored = read_floats(path)
    try:
        state = efficientnet_from_package(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is of another EfficientNet than the packages' Lite ones: {error}") from error
    for name, own in into.state_dict().items():
        if name not in state:
            raise CheckpointError(f"{path} is no whole EfficientNet: {name} is missing")
        if state[name].shape != own.shape:
            raise CheckpointError(
                f"{path} is another EfficientNet than its name says: {name} is {list(state[name].shape)}, "
                f"not {list(own.shape)}"
            )
    into.load_state_dict(state)


def read_floats(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in float32. Raises CheckpointError for numbers that are not finite, or no numbers."""
    file = open_weights(path)
    state = {}
    for name in file.shapes:
        tensor = file.read(name)
        if tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is of complex numbers: get the file again")
        state[name] = tensor.float()
        if not state[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} {NOT_FINITE}")
        if name.endswith(VARIANCE) and bool((state[name] < 0).any()):
            raise CheckpointError(f"{path}: {name} holds variances below 0: get the file again")
    return state


def _today(name: str) -> str:
    """A BERT's name without the prefix and the old endings that some files have."""
    name = name.removeprefix("bert.")
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name


def _shapes(bert: Bert) -> dict[str, tuple[int, ...]]:
    """Of what a Q-Former takes of a BERT; of tables the columns."""
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
        # A piece may be a character that ends lines elsewhere.
        pieces = read_text(path).removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): get the file again") from error
    if UNKNOWN not in pieces or len(pieces) > rows:
        raise CheckpointError(
            f"{path} has {len(pieces)} lines for {rows} rows of the table of words: it has to have one piece a line, "
            f"{UNKNOWN} among them"
        )
    return pieces
