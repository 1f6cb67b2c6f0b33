"""What all commands share: help, exit codes, pipes; a few of them as real processes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from inspect import signature as inspect_signature
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import openblip
from openblip import machine
from openblip.analysis.question_sets import built_in_sets
from openblip.checkpoints.hub.download import download as download_files
from openblip.checkpoints.hub.download import find_files
from openblip.checkpoints.hub.sources import LocalFile
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.files import write_adapter
from openblip.cli.commands import SUMMARIES, Commands
from openblip.data.zoo.data_sets import find_entry
from openblip.devices import choose_placement
from openblip.evaluation.outcome import Evaluation
from openblip.evaluation.recipe import EvaluationRecipe
from openblip.evaluation.run import Run as EvaluationRun
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.opt import OptConfig
from openblip.training.recipe import Recipe
from openblip.verification import IMAGES
from tests.checkpoints.lora.test_files import adapter_of
from tests.checkpoints.official import official
from tests.checkpoints.theirs import write_writer
from tests.models.blip_models import small_parts
from tests.pdf_files import pdf_of
from tests.videos import numbered, write_video

from .conftest import Run

WITH_OTHER_TESTS = {"mcp", "run", "serve"}
"""Commands whose examples run in a test file of their own."""
COMMANDS = [name for name in SUMMARIES if name not in WITH_OTHER_TESTS]
REPOSITORY = Path(__file__).parents[2]


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "openblip", *(str(argument) for argument in arguments)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, text=True, encoding="utf-8", env=buffered, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    told, *_ = (Commands()[name].help or "").split("\n\n")
    assert " ".join(told.split()) == SUMMARIES[name]


def test_the_list_of_commands_builds_none() -> None:
    program = """
import sys
from openblip.cli import main
try:
    main(["--help"])
finally:
    print(*sorted(name for name in sys.modules if name.startswith("openblip.")), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", check=True)
    assert not {f"openblip.cli.{name}" for name in SUMMARIES} & set(done.stderr.split())
    assert all(f"│ {name} " in done.stdout for name in SUMMARIES)


def test_help_needs_no_heavy_library() -> None:
    program = """
import sys
from openblip.cli import main
for arguments in [["--help"], ["--version"], ["models"], *([name, "--help"] for name in sys.argv[1:])]:
    try:
        main(arguments)
    except SystemExit as left:
        assert not left.code, arguments
heavy = {"torch", "numpy", "PIL", "tokenizers", "safetensors", "omegaconf", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *SUMMARIES],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b[" not in done.stdout


def test_help_tells_exit_codes_and_version(run: Run) -> None:
    helped = run("--help")
    assert helped.code == 0
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"^\s*{code}", helped.out, re.MULTILINE)
    assert run("--version").out == f"openblip {openblip.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["captoin"], ["caption"], ["caption", "x.png", "--num-beams", "many"]])
def test_wrong_usage_is_code_2(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Usage: openblip" in ran.err + ran.out


KARPATHY = [{"filename": name, "split": "train", "sentences": [{"raw": "A ball."}]} for name in ("one.jpg", "demo.jpg")]
SMALL_LAYER = OptConfig(vocab_size=300, width=256, depth=1, num_heads=4, ffn_width=512)


def examples(name: str) -> list[str]:
    return [line.strip() for line in (Commands()[name].epilog or "").splitlines() if " openblip " in f" {line}"]


@pytest.fixture(scope="module")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for any official model: what transformers writes, at a small size."""
    return write_writer(tmp_path_factory.mktemp("official")).folder


@pytest.mark.parametrize("example", [example for name in COMMANDS for example in examples(name)])
def test_the_examples_run(
    run: Run,
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    official_folder: Path,
    example: str,
) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    (tmp_path / "pairs").mkdir()
    for name in ("left.jpg", "right.jpg", "pairs/1-left.jpg", "pairs/1-right.jpg"):
        shutil.copy(image_paths[0], tmp_path / name)
    for name in ("photo.jpg", "photos/one.jpg", "photos/more/two.jpg", "photos/merlion.png", "photos/demo.jpg"):
        shutil.copy(image_paths[0], tmp_path / name)
    if "clip.mp4" in example:
        write_video(tmp_path / "clip.mp4", [numbered(number) for number in range(30)])
    if " analyze " in example:
        shutil.copy(image_paths[0], tmp_path / "invoice.jpg")
        for name in ("report.pdf", "scan.pdf"):
            (tmp_path / name).write_bytes(pdf_of([b""] * 8))
        Image.new("L", (30, 20)).save(tmp_path / "scan.tiff", save_all=True, append_images=[Image.new("1", (9, 9))])
        (tmp_path / "my.yaml").write_text(built_in_sets()["document"].to_yaml())
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    shutil.copytree(tiny_model_folder, tmp_path / "weights")
    torch.save({"model": {"opt_proj.weight": torch.ones(4, 8)}}, tmp_path / "blip2_pretrained_opt2.7b.pth")
    write_adapter(adapter_of("mini", tmp_path), tmp_path / "my-adapter")
    monkeypatch.chdir(tmp_path)
    loaded = tiny_model
    if " judge " in example:
        parts = small_parts("entail" if "my-entailment" in example else "pair", tmp_path)
        loaded = model_of(parts, choose_placement("cpu", "float32"))
    monkeypatch.setattr(openblip, "load", lambda *_, **__: loaded)
    if "--db photos.index" in example:
        assert run("index", "photos", "--db", "photos.index").code == 0
    if "--json" in example:  # the other example of doctor measures layers of real size
        monkeypatch.setattr(machine, "LANGUAGE", SMALL_LAYER)
    monkeypatch.setattr("openblip.verification.IMAGES", {name: Path("photos", name) for name in IMAGES})
    for seed in ("seed1", "seed2", "seed3", "before", "after"):
        shutil.copytree(tiny_model_folder, tmp_path / "runs" / seed)
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "photos/one.jpg,a ball\nphotos/more/two.jpg,a dog\n")
    for image in ("photos/photos/one.jpg", "photos/photos/more/two.jpg"):  # of the examples with --images
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_paths[0], tmp_path / image)
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": KARPATHY, "dataset": "flickr8k"}))
    (tmp_path / "questions.jsonl").write_text(
        "".join(f'{{"image": "photos/{name}", "question": "what is it?", "answer": "a ball"}}\n' for name in PHOTOS)
    )
    monkeypatch.setattr("openblip.training.finetune.load_parts", lambda *_, **__: tiny_model.parts)
    monkeypatch.setattr("openblip.training.run.train", pretend_to_train)
    monkeypatch.setattr("openblip.evaluation.run.evaluate", pretend_to_evaluate)
    monkeypatch.setattr("openblip.checkpoints.hub.download.download", pretend_to_download)
    monkeypatch.setattr(
        "openblip.data.zoo.downloads.download_annotations", lambda name, *_: [Path(find_entry(name).media)]
    )
    listed = tmp_path / "data/nocaps/annotations/nocaps_val.json"
    listed.parent.mkdir(parents=True)
    listed.write_text('[{"image": "val/1.jpg", "img_id": 0}]')
    monkeypatch.setattr("openblip.checkpoints.tools.convert.load_parts", lambda *_, **__: load_parts(official_folder))
    monkeypatch.setattr("openblip.checkpoints.tools.quantize.load_parts", lambda *_, **__: load_parts(official_folder))
    monkeypatch.setattr("openblip.checkpoints.tools.merge.load_parts", lambda *_, **__: load_parts(official_folder))
    typed = "photos/one.jpg\n" if example.startswith("find ") else "what is this?\nwhat color is it?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    words = shlex.split(example.partition(" > ")[0].rpartition("| ")[2])
    assert words[0] == "openblip"
    ran = run(*words[1:])
    # a random model does not say what was published of an official one
    assert (ran.code, ran.err) == (int(words[1] == "verify"), "")
    if "--output" in words:
        assert Path(words[words.index("--output") + 1]).stat().st_size > 0
    else:
        assert ran.out


PHOTOS = ("one.jpg", "more/two.jpg")


def pretend_to_train(recipe: Recipe) -> Path:
    """What a training run leaves."""
    folder = Path(recipe.output)
    folder.mkdir(parents=True)
    return folder


def pretend_to_evaluate(recipe: EvaluationRecipe, progress: object) -> EvaluationRun:
    """What an evaluation gives."""
    return EvaluationRun(recipe, Evaluation(recipe.task, {"cider": 0.5}, [], "cider", [], ()), {})


def pretend_to_download(name: str, **options: Any) -> tuple[LocalFile, ...]:
    """What a download gives, once the name and the options have been looked at."""
    assert options.keys() == inspect_signature(download_files).parameters.keys() - {"name"}
    find_files(name)
    return tuple(LocalFile(source, Path(source.name)) for source in official(name).files)


def test_a_failure_before_any_image_is_code_2_and_one_sentence(
    run: Run, image_paths: list[Path], tmp_path: Path
) -> None:
    image_path, empty = image_paths[0], tmp_path
    wrong: list[tuple[list[str | Path], str]] = [
        (["caption", "nowhere.png"], "nowhere.png: there is no such file or folder; check the path"),
        (["caption", empty], f"{empty}: there is no image in this folder"),
        (["caption", image_path, "--model", "blip3"], "blip3 is neither a model folder nor a known model"),
        (["ask", image_path, "why?", "--model", empty], f"{empty / 'config.json'} is missing"),
        (["match", image_path, "a dog", "--dtype", "int3"], "dtype 'int3' is not one of"),
        (["chat", image_path, "--device", "toaster"], "device 'toaster'"),
        (["chat", empty / "x.png"], "there is no such file"),
    ]
    for arguments, message in wrong:
        ran = run(*arguments)
        assert ran.code == 2
        assert ran.out == ""
        assert ran.err.startswith("error: ")
        assert message in ran.err
        assert ran.err.count("\n") == 1


def test_ctrl_c_is_code_130(run: Run, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr(openblip, "load", interrupted)
    assert run("caption", image_paths[0]).code == 130


def test_a_real_process_keeps_results_and_problems_apart(mixed_folder: Path, tiny_model_folder: Path) -> None:
    process = start(
        "caption",
        mixed_folder,
        "--model",
        tiny_model_folder,
        "--json",
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    records = [json.loads(line) for line in out.splitlines()]
    assert [Path(record["image"]).name for record in records] == ["a.png", "b.jpg", "c.png"]
    assert [sorted(record) for record in records] == [
        ["captions", "image"],
        ["error", "image"],
        ["captions", "image"],
    ]
    assert err.startswith(f"error: {mixed_folder / 'b.jpg'}: is not an image")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way on Windows")
def test_a_reader_that_is_gone_ends_the_process_quietly(image_paths: list[Path], tiny_model_folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("caption", image_paths[0].parent, "--model", tiny_model_folder, "--batch-size", "1", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_too_little_memory_is_one_sentence(tmp_path: Path) -> None:
    image = Path(__file__).parents[2] / "examples" / "000000126107.jpg"
    wide = ["caption", str(image), "--num-beams", "10000", "--max-new-tokens", "100", "--output", str(tmp_path / "out")]
    script = (
        "import resource, sys\n"
        "from openblip.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (9 * 10**9, 9 * 10**9))\n"
        "main(sys.argv[1:])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, *wide], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: there is not enough memory: use a smaller --batch-size, --num-beams")
    assert ran.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_ctrl_c_while_the_command_line_starts_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-m", "openblip", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")
