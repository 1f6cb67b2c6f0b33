"""What the docs say is so: shapes of features by running the examples, prompts by the table."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openblip
from openblip.checkpoints.blip2_models import OFFICIAL
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.transformers.config import read_config
from openblip.evaluation.recipe import load_evaluation
from openblip.integrations import lavis
from openblip.models.model import Model
from openblip.text import PromptTemplates
from tests.checkpoints.theirs import t5_words

DOCS = Path(__file__).parents[1] / "docs"
SHAPE = re.compile(r"(\w+) = .*  # \[([\dL, ]+)\]")


def test_features(
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, image_path in zip(("a.jpg", "b.jpg"), image_paths, strict=False):
        shutil.copy(image_path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openblip, "load", lambda **options: tiny_model, raising=False)
    load = lavis.load_model_and_preprocess
    monkeypatch.setattr(
        lavis, "load_model_and_preprocess", lambda kind, _, is_eval: load(kind, tiny_model_folder, is_eval)
    )
    config = tiny_model.network.config
    ours = (config.qformer.image_width, config.qformer.num_queries, config.qformer.width, config.shared_width)
    official, mini = (1408, 32, 768, 256), (1344, 16, 384, 256)
    sizes = {str(written): real for names in (official, mini) for written, real in zip(names, ours, strict=True)}
    sizes["81"] = 4  # the tiny EfficientNet's patches of 64 px
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    known: dict[str, object] = {}
    checked = 0
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            exec(line, known)
            if found := SHAPE.fullmatch(line):
                name, written = found.groups()
                shape = known[name].shape  # type: ignore[attr-defined]
                for size, real in zip(written.split(", "), shape, strict=True):
                    assert size == "L" or real == sizes.get(size, int(size)), line
                checked += 1
    assert checked == 10


@pytest.mark.parametrize("page", ["api.md", "families.md"])
def test_examples_run(page: str, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, image_path in zip(("a.jpg", "b.jpg", "photo.jpg"), image_paths, strict=False):
        shutil.copy(image_path, tmp_path / name)
    t5_words().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, page, "exec", dont_inherit=True), known)
    assert isinstance(known["model"], Model)


def test_prompts() -> None:
    """Every model that writes is in the table of docs/prompts.md, with its own words."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| `(.*?)` \| `(.*?)` \|$", (DOCS / "prompts.md").read_text("utf-8"), re.M)
    described = 0
    for names, caption, question, turn in rows:
        for pattern in re.findall("`(.*?)`", names):
            for model in OFFICIAL:
                if model.language is None or not fnmatch(model.name, pattern):
                    continue
                described += 1
                prompts = model.templates() if model.origin == "lavis" else hub_prompts(model)
                told = re.findall("`(.*?)`", caption)
                tuned = caption if "-coco" not in caption or model.image_size == 364 else ""
                assert prompts.caption == (told[-1] if told and "a photo of" in tuned else ""), model.name
                assert (prompts.question, prompts.chat([], "{question}")) == (question, turn), model.name
    assert described == sum(model.language is not None for model in OFFICIAL) == 15
    assert (rows[-1][0], rows[-1][2]) == ("`mini`", openblip.load().parts.prompts.question)


def test_published_figures() -> None:
    """docs/results.md and the recipes say the same of the paper's tables, and leave out none of each other's models."""
    table = (DOCS / "results.md").read_text("utf-8").partition("## Published BLIP-2")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+?)(?:_\*)?\.yaml` \| .*? \| (.*\d) \|$", table, re.MULTILINE)
    compared = 0
    for name, told in rows:
        for path in sorted((DOCS.parent / "recipes/evaluate").glob(f"{name}*.yaml")):
            figures = [figure for figure in load_evaluation(path).published if "arXiv" in figure.source]
            size = path.stem.removeprefix(name).lstrip("_")
            mine = re.findall(rf"{re.escape(size)} (\d[\d./ ]*)", told)
            numbers = sorted(float(number) for part in mine for number in part.split("/"))
            assert numbers == sorted(round(100 * figure.value, 1) for figure in figures), path
            compared += len(numbers)
    assert compared == 36


def test_published_figures_of_blip_and_clip() -> None:
    """docs/results.md has a row for each of their recipes, with all its figures in the recipe's order."""
    table = (DOCS / "results.md").read_text("utf-8").partition("## Published BLIP and CLIP")[2]
    rows = dict(re.findall(r"^\| `(\w+)\.yaml` \| .*? \| (.*\d) \|$", table, re.MULTILINE))
    paths = [
        path for path in (DOCS.parent / "recipes/evaluate").glob("[bc]lip_*.yaml") if load_evaluation(path).published
    ]
    assert sorted(rows) == sorted(path.stem for path in paths)
    for path in paths:
        told = re.findall(r"\d+\.\d+", rows[path.stem])
        assert [float(number) for number in told] == [
            pytest.approx(100 * figure.value) for figure in load_evaluation(path).published
        ], path


def hub_prompts(model: ModelEntry) -> PromptTemplates:
    """As a folder gets them whose config.json is the hub's."""
    with tempfile.TemporaryDirectory() as folder:
        text = {"model_type": "opt" if model.language is not None and model.language.kind == "opt" else "t5"}
        content = {
            "model_type": "blip-2",
            "text_config": text,
            "vision_config": {"image_size": model.image_size},
            "qformer_config": {},
        }
        Path(folder, "config.json").write_text(json.dumps(content), encoding="utf-8")
        return read_config(Path(folder)).prompts


def test_the_picture_of_heatmaps_is_what_its_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("heatmap_picture", DOCS / "heatmap_picture.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (DOCS / "heatmap.jpg").stat().st_size < 150_000
    with Image.open(DOCS / "heatmap.jpg") as kept:
        drawn = script.draw()
        assert kept.size == drawn.size
        apart = np.abs(np.asarray(kept, dtype=np.float32) - np.asarray(drawn, dtype=np.float32))
    assert apart.mean() < 4, "run python docs/heatmap_picture.py"
