"""A language model that transformers can load -> what stands behind a Q-Former: the model, its words, its stop sign.

This is the one room that imports transformers (the extra `hf`), and only when such a model is asked for. Code that
comes with a model is never run, and of pickled files nothing but tensors is read.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openblip.checkpoints.hub.download import REPOSITORY_NAME, download
from openblip.checkpoints.hub.progress import download_progress
from openblip.checkpoints.model_parts import LanguageSource
from openblip.checkpoints.tensors.assign import NOT_FINITE
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.transformers.tokenizers import read_words, stop_text
from openblip.errors import CheckpointError, OpenBlipError
from openblip.nn.hf_language_model import ExternalConfig, ExternalDecoder, ExternalLanguageModel, ExternalSeq2Seq
from openblip.text import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

SAMPLES = 64
"""Numbers of each tensor that a fingerprint looks at."""


@dataclass(frozen=True)
class LoadedLanguage:
    """An external language model.

    Attributes:
        source: where it was found: an absolute path, or the very commit of a repository, with its fingerprint.
    """

    model: ExternalLanguageModel
    tokenizer: Tokenizer
    stop_token: str
    source: LanguageSource


def load_language_model(
    source: LanguageSource,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    beside: Path | None = None,
) -> LoadedLanguage:
    """Load a language model, frozen and in evaluation mode.

    Args:
        beside: a folder that relative paths may start from, too.

    Raises:
        OpenBlipError: transformers is not installed.
        CheckpointError: no such folder; a file is missing or broken; other weights than the fingerprint's; a model that
            needs code of its own, or that does not go on from embeddings.
        DownloadError: a repository cannot be had.
    """
    transformers = _import_transformers()
    folder, found = _find(source, beside)
    if source.fingerprint not in (None, found.fingerprint):
        raise CheckpointError(
            f"{folder} is not the language model that this model was trained with: put that one there, "
            'or set "fingerprint" in its config.json to null to go on with another'
        )
    model = _load(transformers, folder, dtype).to(device).requires_grad_(False).eval()
    stop = _token_id(model, "eos_token_id")
    if stop is None:
        raise CheckpointError(f"{folder}: config.json names no eos_token_id, and a text could not end")
    pad = _token_id(model, "pad_token_id")
    rows = model.get_input_embeddings().weight.shape[0]
    words = read_words(folder, stop, stop if pad is None else pad, rows)
    opening = _opening(words.fast)
    external: ExternalLanguageModel
    if model.config.is_encoder_decoder:
        external = ExternalSeq2Seq(model, _config(model, _start_ids(model, opening, folder)))
    else:
        first = opening[-1] if opening else _token_id(model, "bos_token_id")
        words = Tokenizer(words.fast, _text_of(words, stop if first is None else first), _text_of(words, words.pad_id))
        external = ExternalDecoder(model, _config(model, ()))
    _check_behaviour(external, folder)
    return LoadedLanguage(external, words, stop_text(words, stop, folder), found)


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits of the weights in a folder, whatever type they are computed in later.

    Only some numbers of each tensor are looked at: training changes all of them.
    """
    weights = WeightFolder(folder)
    digest = hashlib.sha256()
    for name in sorted(weights.shapes):
        numbers = weights.read(name).flatten()
        step = max(1, numbers.numel() // SAMPLES)
        digest.update(name.encode())
        digest.update(numbers[::step].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise OpenBlipError('a language model of transformers needs it: pip install "openblip[hf]"') from None


def _find(source: LanguageSource, beside: Path | None) -> tuple[Path, LanguageSource]:
    path = Path(source.place).expanduser()
    folders = [path] if beside is None else [beside / path, path]
    for folder in folders:
        if folder.is_dir():
            folder = folder.resolve()
            return folder, LanguageSource(str(folder), None, fingerprint(folder))
    if not REPOSITORY_NAME.fullmatch(source.place):
        raise CheckpointError(
            f"the language model {source.place} is not there: put its folder back, "
            'or say in config.json, under "external", where it is now'
        )
    with download_progress() as progress:
        folder = download(source.place, revision=source.revision, progress=progress)[0].path
    # The cache has a folder for each commit: what a model is trained with must not change under it.
    revision = folder.name if folder.parent.name == "snapshots" else source.revision
    return folder, LanguageSource(source.place, revision, fingerprint(folder))


def _load(transformers: Any, folder: Path, dtype: torch.dtype) -> Any:
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **safe)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model, report = kind.from_pretrained(
            folder, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **safe
        )
    except Exception as error:  # what comes depends on the model, its files and the packages that it wants
        first_line = str(error).strip().partition("\n")[0].rstrip(".:")
        raise CheckpointError(f"transformers cannot load {folder} as a language model: {first_line}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise CheckpointError(f"{folder} lacks weights of a language model ({missing}): get one that writes text")
    return model


def _config(model: Any, start_ids: tuple[int, ...]) -> ExternalConfig:
    rows, width = model.get_input_embeddings().weight.shape
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    return ExternalConfig(rows, width, positions, bool(start_ids), start_ids)


def _start_ids(model: Any, opening: tuple[int, ...], folder: Path) -> tuple[int, ...]:
    """What the decoder of an encoder-decoder begins with; BART's has learnt to say its opening after the start."""
    start = _token_id(model, "decoder_start_token_id")
    if start is None:
        raise CheckpointError(f"{folder}: config.json names no decoder_start_token_id, and a text could not begin")
    return opening if opening == (start,) else (start, *opening)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _token_id(model: Any, name: str) -> int | None:
    """One of the special tokens; of several, the first."""
    for settings in (getattr(model, "generation_config", None), _text_config(model)):
        found = getattr(settings, name, None)
        if isinstance(found, list | tuple):
            found = found[0] if found else None
        if found is not None and found >= 0:
            return int(found)
    return None


def _opening(fast: FastTokenizer) -> tuple[int, ...]:
    """The special tokens that the model's own tokenizer puts in front of a text."""
    bare, whole = fast.encode("a", add_special_tokens=False).ids, fast.encode("a").ids
    return tuple(whole[: whole.index(bare[0])])


def _text_of(words: Tokenizer, token: int) -> str:
    return str(words.fast.id_to_token(token))


@torch.no_grad()
def _check_behaviour(external: ExternalLanguageModel, folder: Path) -> None:
    """A few tokens, from embeddings behind padding and step by step, must score as their ids do in one pass.

    That finds what cannot be seen from outside: models whose words look ahead, that scale embeddings on the way in,
    that keep another kind of state than keys and values, or that take padding for text.

    Raises:
        CheckpointError: they do not, or the model cannot be asked so.
    """
    try:
        pairs = list(_scores_both_ways(external))
    except Exception as error:  # a model of another kind fails in its own way
        raise CheckpointError(f"{_named(external, folder)} cannot go on from embeddings ({error})") from error
    for found, expected in pairs:
        bound = 1e-3 if expected.dtype == torch.float32 else 5e-2
        if not found.isfinite().all() or not expected.isfinite().all():
            _refuse_broken_weights(external, folder)
        if (found - expected.float()).abs().max() > bound * expected.float().abs().max():
            raise CheckpointError(f"{_named(external, folder)} does not go on from embeddings as it does from words")


def _refuse_broken_weights(external: ExternalLanguageModel, folder: Path) -> None:
    """Raises CheckpointError, which names what made the scores infinite or no numbers (NaN)."""
    for name, weight in external.model.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{folder}: {name} {NOT_FINITE}")
    raise CheckpointError(f"{_named(external, folder)} gives scores that are infinite or no numbers: use float32")


def _named(external: ExternalLanguageModel, folder: Path) -> str:
    return f"{folder} cannot stand behind a Q-Former: its {type(external.model).__name__}"


def _scores_both_ways(external: ExternalLanguageModel) -> Iterator[tuple[Tensor, Tensor]]:
    model = external.model
    ids = torch.tensor([[1, 2, 0]], device=model.device)
    read, next_ids = ids[:, :2], ids[:, 2]
    embeds = torch.nn.functional.pad(external.embed(read), (0, 0, 1, 0))
    reading, first = external.read(embeds, torch.tensor([[False, True, True]], device=model.device), 1)
    if not external.config.encodes_prompts:
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 1:]
    else:
        start = torch.tensor([external.config.start_ids], device=model.device)
        decoder_ids = torch.cat([start, next_ids[None]], dim=1)
        mask = torch.ones_like(read)
        expected = model(input_ids=read, attention_mask=mask, decoder_input_ids=decoder_ids).logits[
            :, start.shape[1] - 1 :
        ]
    yield first, expected[:, 0]
    yield reading.step(next_ids), expected[:, 1]
