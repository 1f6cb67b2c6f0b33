"""What is in a file or folder of weights: whose layout, which parts, and most likely which official model.

Only names, shapes and types are read, so that a file of 10 GB costs no memory; a pickled file is opened with nothing
but tensors allowed in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from openblip.checkpoints.blip2_models import COCO
from openblip.checkpoints.hub.repositories import PICKLED, SAFETENSORS
from openblip.checkpoints.json_files import read_json_if_there
from openblip.checkpoints.lora.notes import PICKLED_FILE, PREFIX, WEIGHTS_FILE, AdapterNote, adapter_note
from openblip.checkpoints.model_entry import LANGUAGE, PARTS, PROJECTION, QFORMER, TEXT, VISION, ModelEntry
from openblip.checkpoints.registry import all_models, find_model
from openblip.checkpoints.tensors.header import INDEX_SUFFIX, is_safetensors, read_header, read_index
from openblip.checkpoints.tensors.readable import refuse_stand_ins
from openblip.errors import CheckpointError, printable

OTHER = "other"
SCALE, STEPS = ":scale", ":steps"
"""Behind the name of a quantized tensor, in folders of ours."""
PICKLE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

Layout = Literal["OpenBLIP", "LAVIS", "transformers", ""]

PART_NAMES: tuple[tuple[str, str], ...] = (
    (TEXT, r"(Qformer\.bert|qformer)\.encoder\.layer\.\d+\.(intermediate|output)\.|qformer\.layers\.\d+\.text_ffn\."),
    (TEXT, r"Qformer\.cls\.|Qformer\.bert\.embeddings\.(word|position)_embeddings\.|embeddings\.(word|position)_emb"),
    (TEXT, r"qformer\.(words|positions|head)\.|(text|vision|image)_proj(ection)?\.|itm_head\.|temp(erature)?$"),
    (TEXT, r"text_encoder\.|encoder\.(layers|words|positions|norm)\.|(cls|class)_head\."),
    (TEXT, r"text(_model)?\.|(token_embedding|ln_final)\.|text_projection$|log(it)?_scale$"),
    (QFORMER, r"Qformer\.|qformer\.|query_tokens$"),
    (PROJECTION, r"(opt|t5|language|prompt)_proj(ection)?\."),
    (LANGUAGE, r"(opt_model|t5_model|language_model|decoder|t5|model\.decoder|shared|encoder\.block|lm_head)\."),
    (LANGUAGE, r"text_decoder\."),
    (LANGUAGE, r"encoder\.(final_layer_norm|embed_tokens)\."),
    (VISION, r"visual_encoder\.|visual(_projection)?\.|ln_vision\.|vision(_model|_norm)?\."),
    (
        VISION,
        r"(cls_token|pos_embed|class_embedding|positional_embedding)$|(patch_embed|blocks|conv1|ln_pre|ln_post)\.",
    ),
    (VISION, r"transformer\.resblocks\."),
)
"""Part and how its tensors' names begin, in LAVIS, transformers, ours, and the encoders' own files; first fit wins."""

SECOND_NAMES = (
    (r"(Qformer|text_decoder)\.cls\.predictions\.decoder\.weight", r"\1.bert.embeddings.word_embeddings.weight"),
    (r"(Qformer|text_decoder)\.cls\.predictions\.decoder\.bias", r"\1.cls.predictions.bias"),
    (r"(.*)(encoder|decoder)\.embed_tokens\.weight", r"\1shared.weight"),
)
"""A tensor, and the one that it is tied to."""
PRETRAINED = "vision_proj.weight"
SHARED_NAMES = r"text_decoder\.bert\.((?!.*\.attention\.).*)", r"text_encoder.\1"
"""Where a BLIP's file has this beside a decoder, it is of its pre-training: encoder and decoder share what is no
self-attention."""

LAYOUTS: tuple[tuple[Layout, str], ...] = (
    ("OpenBLIP", r"qformer\.layers\.|qformer\.queries$"),
    ("LAVIS", r"Qformer\.|visual_encoder\.|(opt|t5)_(model|proj)\."),
    ("transformers", r"qformer\.encoder\.|vision_model\.|language_(model|projection)\."),
)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file or folder.

    Attributes:
        shapes, types: by name; types as PyTorch calls them.
        beside: what else is in the file, and what is wrong with it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a model as it is stored.

    Attributes:
        parameters: weights, each counted once however often the file repeats it.
        types: weights of each type, the commonest first.
    """

    parameters: int
    types: Mapping[str, int]


@dataclass(frozen=True)
class Contents:
    """What a path holds.

    Attributes:
        format: "OpenBLIP folder", "transformers folder", "LoRA adapter", "LAVIS file", "safetensors file", "PyTorch
            file".
        size: bytes of the files.
        parts: by the names in `model_entry.PARTS`, and "other".
        guess: official models of these sizes in this layout, or the official file that it is.
        elsewhere: parts that the guessed model has but not this file, and what supplies them.
        notes: what else is in it, and what is wrong with it.
        adapter: where it is one, of which model.
    """

    path: Path
    format: str
    size: int
    parts: Mapping[str, Part]
    guess: tuple[str, ...]
    elsewhere: Mapping[str, str]
    notes: tuple[str, ...]
    adapter: AdapterNote | None = None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())


def inspect(path: Path) -> Contents:
    """Look into a file of weights or a model folder.

    Raises:
        CheckpointError: nothing is there, no weights are in it, it is broken, or it holds what could run code.
    """
    path = path.expanduser()
    if not path.is_file() and not path.is_dir():
        problem = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {problem}: give a model folder or a file of weights (for a name, use `openblip plan`)"
        )
    from openblip.checkpoints.tensors.wrappers import ALL_ROOTS, peel

    config = _config(path)
    files, lacking = _weight_files(path)
    tensors = [_read(file) for file in files]
    stored = {name: shape for one in tensors for name, shape in one.shapes.items()}
    kinds = {name: kind for one in tensors for name, kind in one.types.items()}
    # peft's names are transformers' with something in front, and so are those of other wrappers.
    names = peel(path, stored, ALL_ROOTS)
    shapes = {name.removeprefix(PREFIX): stored[own] for name, own in names.items()}
    types = {name.removeprefix(PREFIX): kinds[own] for name, own in names.items()}
    notes = [*dict.fromkeys(note for one in tensors for note in one.beside), *lacking]
    layout = _layout(shapes)
    parts = _parts(shapes, types)
    guess: tuple[str, ...]
    adapter = adapter_note(path, shapes)
    if adapter is not None:
        kind, guess = "LoRA adapter", ()
    elif config.get("format") == "openblip":
        kind, guess = "OpenBLIP folder", (str(config.get("name")),)
    else:
        kind = _format(files, layout, config)
        guess = _guess(shapes, layout)
    return Contents(
        path=path,
        format=kind,
        size=sum(file.stat().st_size for file in files),
        parts=parts,
        guess=guess,
        elsewhere=_elsewhere(guess, parts),
        notes=tuple(notes),
        adapter=adapter,
    )


def part_of(name: str) -> str:
    """Which part of a model a tensor belongs to, by its name in any layout."""
    return next((part for part, pattern in PART_NAMES if re.match(pattern, name)), OTHER)


def _config(path: Path) -> dict[str, Any]:
    return read_json_if_there(path / "config.json") if path.is_dir() else {}


def _format(files: list[Path], layout: Layout, config: Mapping[str, Any]) -> str:
    if "model_type" in config:
        return "transformers folder"
    if layout == "LAVIS":
        return "LAVIS file"
    return "safetensors file" if all(map(is_safetensors, files)) else "PyTorch file"


def _weight_files(path: Path) -> tuple[list[Path], list[str]]:
    """The files to read, and a note for each that an index lists but that is not there."""
    if not path.is_dir():
        if path.name.endswith(INDEX_SUFFIX):
            return _pieces(path)
        return [path], []
    for whole, pieces in (SAFETENSORS, PICKLED):
        if (path / whole).is_file():
            return [path / whole], []
        if (path / pieces).is_file():
            return _pieces(path / pieces)
    # The folder of a run that trained an adapter holds its checkpoints, too.
    for adapter in (WEIGHTS_FILE, PICKLED_FILE):
        if (path / adapter).is_file():
            return [path / adapter], []
    files = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", *PICKLE_ENDINGS))
    if not files:
        raise CheckpointError(f"{path} holds no weights: give a model folder or a file of weights")
    if len(files) > 1:
        raise CheckpointError(f"{path} holds several files of weights: give one, such as {files[0]}")
    return files, []


def _pieces(index: Path) -> tuple[list[Path], list[str]]:
    pieces = [index.parent / piece for piece in sorted(set(read_index(index).values()))]
    there = [piece for piece in pieces if piece.is_file()]
    if not there:
        raise CheckpointError(f"{index} is broken, or none of its files is there: get the folder again")
    return there, [f"{piece.name} is missing" for piece in pieces if piece not in there]


def _read(path: Path) -> Tensors:
    refuse_stand_ins(path)
    return _read_safetensors(path) if is_safetensors(path) else _read_pickled(path)


def _read_safetensors(path: Path) -> Tensors:
    header = read_header(path)
    types = {name: SAFETENSORS_TYPES.get(entry.kind, entry.kind) for name, entry in header.items()}
    return Tensors({name: entry.shape for name, entry in header.items()}, types)


def _read_pickled(path: Path) -> Tensors:
    from openblip.checkpoints.tensors.pickles import check_names, unpickle
    from openblip.checkpoints.tensors.wrappers import unwrap

    found = unwrap(unpickle(path))
    tensors, beside = found.tensors, found.beside
    check_names(path, tensors)
    if not tensors:
        raise CheckpointError(f"{path} holds no named tensors: give a file of weights")
    return Tensors(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
        (printable(f"beside the weights: {', '.join(beside)}"),) if beside else (),
    )


def _layout(names: Iterable[str]) -> Layout:
    names = list(names)
    return next((layout for layout, pattern in LAYOUTS if any(re.match(pattern, name) for name in names)), "")


def _parts(shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str]) -> dict[str, Part]:
    counts: dict[str, Counter[str]] = {}
    # OpenAI's names of CLIP's text encoder are those of its image encoder in a file of its own.
    texts = ("transformer.", "positional_embedding") if "token_embedding.weight" in shapes else ()
    for name, shape in shapes.items():
        # A buffer that counts positions and the scales of quantized weights are no parameters.
        if name.endswith(("position_ids", SCALE, STEPS)) or _is_second_name(name, shapes):
            continue
        # Two codes of four bits lie in one byte.
        codes = 2 if types[name] == "uint8" and name + SCALE in shapes else 1
        part = TEXT if name.startswith(texts) else part_of(name)
        counts.setdefault(part, Counter())[types[name]] += codes * prod(shape)
    return {
        part: Part(counts[part].total(), dict(counts[part].most_common())) for part in (*PARTS, OTHER) if part in counts
    }


def _is_second_name(name: str, names: Mapping[str, object]) -> bool:
    """Whether a tensor only repeats another of the file, as saving tied weights leaves it."""
    before, ending, _ = name.rpartition("lm_head.weight")
    if ending:  # OPT ties its head to the word table, FLAN-T5 does not.
        words = (f"{before}model.decoder.embed_tokens.weight", f"{before}decoder.embed_tokens.weight")
        return f"{before}shared.weight" not in names and any(first in names for first in words)
    for second, first in (*SECOND_NAMES, *([SHARED_NAMES] if PRETRAINED in names else [])):
        if re.fullmatch(second, name):
            return re.sub(second, first, name) in names
    return False


def _guess(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[str, ...]:
    cross = _side(shapes, r".*\.crossattention\.(self|attention)\.key\.weight", 1)
    if cross is None:
        return _guess_frozen(shapes)
    language = _side(shapes, r"(opt|t5|language)_proj(ection)?\.weight", 0)
    t5 = any(re.match(r"t5_|language_model\.(encoder|shared)\.", name) for name in shapes)
    patches = _side(shapes, r"visual_encoder\.pos_embed", 1) or _side(shapes, r".*\.position_embedding", 1)

    def fits(model: ModelEntry) -> bool:
        if model.origin != layout.lower() or model.vision is None or model.vision.width != cross:
            return False
        if (model.image_size == COCO) != (patches == model.vision.tokens(COCO)):
            return False
        if model.language is None:
            return language is None and any(part_of(name) == TEXT for name in shapes)
        return model.language.width == language and model.language.encodes_prompts == t5

    return tuple(model.name for model in all_models() if fits(model))


def _guess_frozen(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Whose frozen part a file is that has no Q-Former."""
    width = _side(shapes, r"cls_token", 2) or _side(shapes, r"(visual\.)?class_embedding", 0)
    encoders = [model.vision for model in all_models() if model.vision is not None]
    names = {encoder.width: f"{encoder.name}.pth" for encoder in encoders}
    if width is not None:
        return (names[width],) if width in names else ()
    table = _side(shapes, r"((model\.)?decoder\.embed_tokens|shared)\.weight", 1)
    t5 = "shared.weight" in shapes
    layers = {
        int(found[1]) for name in shapes if (found := re.match(r"(?:model\.)?decoder\.(?:layers|block)\.(\d+)\.", name))
    }
    fitting = {
        model.language.repository
        for model in all_models()
        if model.language is not None
        and (model.language.width, model.language.encodes_prompts, model.language.depth) == (table, t5, len(layers))
    }
    return tuple(sorted(fitting))


def _side(shapes: Mapping[str, tuple[int, ...]], pattern: str, side: int) -> int | None:
    """One side of the first tensor whose name fits."""
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name) and len(shape) > side:
            return shape[side]
    return None


def _elsewhere(guess: tuple[str, ...], parts: Mapping[str, Part]) -> dict[str, str]:
    """A part of which only a stray table is here counts as missing."""
    model = find_model(guess[0]) if len(guess) == 1 else None
    if model is None:
        return {}
    missing = [
        part
        for part, parameters in model.params.items()
        if part not in parts or parts[part].parameters < parameters // 2
    ]
    suppliers = {part: source.name for source in model.files for part in source.supplies}
    return {part: suppliers[part] for part in missing}
