"""Folders without a vocabulary, as checkpoints of transformers' Trainer are: their words are read from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import openblip
import openblip.integrations.transformers as ours
from openblip.checkpoints.loading import find_tokenizer, load_parts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.convert import convert
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.cli import main
from openblip.errors import CheckpointError, DownloadError, OpenBlipError, OptionError
from tests.checkpoints.theirs import Theirs, write_matcher, write_writer
from tests.checkpoints.web import Web, add_repository, serve

WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module", params=[write_writer, write_matcher], ids=["writer", "matcher"])
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    made: Theirs = request.param(tmp_path_factory.mktemp("theirs"))
    return made


@pytest.fixture
def bare(theirs: Theirs, tmp_path: Path) -> Path:
    return without_words(theirs.folder, tmp_path / "checkpoint-500")


def without_words(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    for name in WORDS:
        (copy / name).unlink(missing_ok=True)
    return copy


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def vocabularies(place: str | Path, tokenizer: str | Path | None = None) -> list[str]:
    parts = load_parts(place, ReadOptions(tokenizer=None if tokenizer is None else find_tokenizer(tokenizer)))
    words = [parts.tokenizer, None if parts.matching is None else parts.matching.tokenizer]
    return [one.fast.to_str() for one in words if one is not None]


def test_words_come_from_a_folder(theirs: Theirs, bare: Path, tmp_path: Path) -> None:
    expected = vocabularies(theirs.folder)
    assert vocabularies(bare, tokenizer=theirs.folder) == expected
    assert vocabularies(bare, tokenizer=str(theirs.folder / "tokenizer.json")) == expected
    # Of ours, too; and it can be made whole once and for all.
    convert(bare, tmp_path / "whole", "openblip", tokenizer=theirs.folder)
    quantize_model(bare, tmp_path / "small", 8, tokenizer=theirs.folder)
    assert len(vocabularies(tmp_path / "whole")) == len(vocabularies(tmp_path / "small")) == 1
    assert len(vocabularies(bare, tokenizer=tmp_path / "whole")[0]) == len(expected[0])


def test_words_come_from_the_hub_without_weights(theirs: Theirs, bare: Path, web: Web) -> None:
    files = {path.name: path.read_bytes() for path in theirs.folder.iterdir()}
    add_repository(web, "someone/model", files)
    expected = vocabularies(theirs.folder)
    for _ in range(2):
        assert vocabularies(bare, tokenizer="someone/model") == expected
        assert not any(path.endswith(".safetensors") for _, path, _ in web.asked)
    web.asked.clear()
    assert vocabularies(bare, tokenizer="someone/model") == expected and web.asked == []
    with pytest.raises(DownloadError, match="someone/else is not on the Hugging Face hub"):
        load_parts(bare, ReadOptions(tokenizer=find_tokenizer("someone/else")))


def test_a_subfolder_of_a_private_repository(theirs: Theirs, web: Web) -> None:
    files = {f"run/best/{path.name}": path.read_bytes() for path in theirs.folder.iterdir()}
    add_repository(web, "someone/private", {"README.md": b"mine", "other/config.json": b"{}", **files})
    writes = hasattr(theirs.model, "generate") and theirs.processor.num_query_tokens is not None
    kind = ours.Blip2ForConditionalGeneration if writes else ours.Blip2ForImageTextRetrieval
    model = kind.from_pretrained("someone/private", subfolder="run/best", token="hf_mine")
    expected = kind.from_pretrained(theirs.folder).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    assert web.tokens and set(web.tokens) == {"Bearer hf_mine"}
    assert not web.gets("/someone/private/resolve/main/other/config.json")
    web.tokens.clear()
    ours.AutoProcessor.from_pretrained("someone/private", subfolder="run/best")
    assert set(web.tokens) == {""}  # nobody's but the call's


def test_what_does_not_go_together(theirs: Theirs, bare: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    faults: list[tuple[str | Path, str | Path, type[OpenBlipError], str]] = [
        (
            tiny_model_folder,
            theirs.folder,
            OptionError,
            "has its own words: a tokenizer goes with a folder that transf",
        ),
        ("mini", theirs.folder, OptionError, "has its own words"),
        (bare, tmp_path / "nowhere", CheckpointError, "the tokenizer .*nowhere is not there: give a model's folder"),
        (bare, bare, CheckpointError, r"has no vocabulary: .* tokenizer=\.\.\."),
        (bare, "", OptionError, "the tokenizer is empty"),
    ]
    for place, tokenizer, kind, words in faults:
        with pytest.raises(kind, match=words):
            load_parts(place, ReadOptions(tokenizer=find_tokenizer(tokenizer)))
    other = write_writer if theirs.processor.num_query_tokens is None else write_matcher
    with pytest.raises(CheckpointError):  # another model's words
        openblip.load(bare, tokenizer=other(tmp_path / "other").folder)


def test_commands_take_a_tokenizer(
    theirs: Theirs, bare: Path, image_paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = (
        ["match", str(image_paths[0]), "a dog"]
        if theirs.processor.num_query_tokens is None
        else ["caption", str(image_paths[0])]
    )

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        return int(left.value.code or 0)

    printed = []
    for place in (["--model", str(theirs.folder)], ["--model", str(bare), "--tokenizer", str(theirs.folder)]):
        assert run(*verb, *place) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
    assert run(*verb, "--model", str(bare)) != 0
    assert "--tokenizer" in capsys.readouterr().err
    mine = str(tmp_path / "mine")
    assert run("convert", str(bare), mine, "--to", "openblip", "--tokenizer", str(theirs.folder)) == 0
    assert run(*verb, "--model", mine) == 0
