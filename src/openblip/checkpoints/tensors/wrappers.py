"""What training programs put around a model's tensors: dictionaries, and words in front of their names.

PyTorch's DistributedDataParallel calls a model `module`, torch.compile `_orig_mod`, Lightning what its class calls it,
peft `base_model.model`; each saves its names so. Here they are taken off, for every kind of file alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from openblip.errors import CheckpointError

ENTRIES = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "model_state",
    "model_weights",
    "net",
    "network",
    "weights",
)
"""Where programs keep the tensors, beside a run's settings and counters; the first that is there counts."""
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What wrappers of single layers put into names, wherever those stand."""
PLAIN = (int, float, str, bool, type(None))
MAX_DEPTH = 8

BLIP2_ROOTS = (
    *("vision_model.", "qformer.", "query_tokens", "language_model.", "language_projection."),
    *("vision_projection.", "text_projection.", "itm_head.", "embeddings."),
)
"""How names begin in transformers' BLIP-2; those without a dot are whole."""
LAVIS_ROOTS = (
    *("visual_encoder.", "ln_vision.", "Qformer.", "query_tokens", "opt_model.", "t5_model.", "opt_proj.", "t5_proj."),
    *("vision_proj.", "text_proj.", "itm_head.", "temp"),
)
ENCODER_ROOTS = (
    *("cls_token", "pos_embed", "patch_embed.", "blocks.", "visual.", "class_embedding", "positional_embedding"),
    *("conv1.", "ln_pre.", "ln_post.", "transformer."),
)
"""Of EVA's and CLIP's image encoders in files of their own."""
LANGUAGE_ROOTS = ("model.decoder.", "decoder.", "shared.", "encoder.", "lm_head.")
"""Of OPT and T5 in folders of their own."""
NATIVE_ROOTS = ("vision.", "vision_norm.", "qformer.", "prompt_projection.", "image_projection.", "temperature")
"""Of OpenBLIP's own folders, as far as every model has them."""
ALL_ROOTS = (*BLIP2_ROOTS, *LAVIS_ROOTS, *ENCODER_ROOTS, *LANGUAGE_ROOTS, *NATIVE_ROOTS, "opt.", "t5.")


@dataclass(frozen=True)
class Unwrapped:
    """The named tensors in what a file holds.

    Attributes:
        beside: names of all else in it.
        odd: those of them that stand among the tensors and are no plain settings.
    """

    tensors: dict[str, Tensor]
    beside: tuple[str, ...]
    odd: tuple[str, ...]


def unwrap(content: object) -> Unwrapped:
    """Look for the tensors in what was unpickled; there may be none."""
    beside: list[str] = []
    for _ in range(MAX_DEPTH):
        entry = next((name for name in ENTRIES if isinstance(content, dict) and _has_tensors(content.get(name))), None)
        if entry is None or not isinstance(content, dict):
            break
        beside += [str(name) for name in content if name != entry]
        content = content[entry]
    items: Mapping[Any, object] = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in items.items() if isinstance(name, str) and isinstance(value, Tensor)}
    others = {str(name): value for name, value in items.items() if name not in tensors}
    odd = [name for name, value in others.items() if not isinstance(value, PLAIN)]
    return Unwrapped(tensors, (*beside, *others), tuple(odd))


def _has_tensors(content: object, depth: int = MAX_DEPTH) -> bool:
    if not isinstance(content, dict) or depth == 0:
        return False
    return any(isinstance(one, Tensor) for one in content.values()) or any(
        _has_tensors(content.get(name), depth - 1) for name in ENTRIES
    )


def peel(path: Path, names: Iterable[str], roots: Sequence[str]) -> dict[str, str]:
    """Names without what wrappers have put in front of them or into them, and the names that are stored.

    What stands in front of most names that a layout knows, and of none of them nothing, is taken off.

    Args:
        path: named by errors.
        roots: how the layout's own names begin; one that does not end with a dot is a whole name.

    Raises:
        CheckpointError: two names become one.
    """
    bare = {name: _without_inside(name) for name in names}
    layers, whole = tuple(root for root in roots if root.endswith(".")), frozenset(roots)
    front = ""
    if not any(name.startswith(layers) or name in whole for name in bare.values()):
        fronts = Counter(one for name in bare.values() if (one := _front(name, layers, whole)) is not None)
        front = fronts.most_common(1)[0][0] if fronts else ""
    found: dict[str, str] = {}
    for stored, name in bare.items():
        own = name.removeprefix(front)
        if own in found:
            raise CheckpointError(f"{path} has {own} twice, as {found[own]} and as {stored}: save the model anew")
        found[own] = stored
    return found


def _without_inside(name: str) -> str:
    for word in INSIDE:
        name = name.replace(word, "")
    return name


def _front(name: str, layers: tuple[str, ...], whole: frozenset[str]) -> str | None:
    """What stands in front of the first place in a name where one of the layout's own begins; None without one."""
    start = 0
    while True:
        rest = name[start:]
        if rest.startswith(layers) or rest in whole:
            return name[:start]
        dot = name.find(".", start)
        if dot < 0:
            return None
        start = dot + 1


class Peeled:
    """A file of weights under the names that its layout has.

    Attributes:
        shapes: of every tensor; names: those that are stored.

    Raises:
        CheckpointError: two names become one.
    """

    def __init__(self, file: WeightFile, roots: Sequence[str]) -> None:
        self.file = file
        self.path = file.path
        self.names = peel(file.path, file.shapes, roots)
        self.shapes = {name: file.shapes[stored] for name, stored in self.names.items()}

    def read(self, name: str) -> Tensor:
        return self.file.read(self.names[name])

    def let_go(self) -> None:
        """As `SafetensorsFile.let_go`."""
        self.file.let_go()


class WeightFile(Protocol):
    """A file of named tensors."""

    path: Path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor: ...

    def let_go(self) -> None: ...
