"""The comparison measures a model in a process of its own, and its scores are those of the recipes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from openblip.models.model import Model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_comparison", ROOT / "benchmarks/model_comparison.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "model_comparison", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_table(
    model_comparison: ModuleType,
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [
        json.dumps({"image": str(image_path), "question": "what is it?", "answers": ["dog"]})
        for image_path in image_paths
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = tmp_path / "dogs.yaml"
    recipe.write_text(
        "task: questions\ndata: {name: dogs, questions: questions.jsonl}\nquestions: {accuracy: exact}\noutput: out\n",
        encoding="utf-8",
    )
    written = tmp_path / "table.json"
    measured = []

    def measure_here(*given: object) -> object:
        measured.append(given)
        return model_comparison.measure(*given)

    monkeypatch.setattr(model_comparison, "measure_apart", measure_here)
    arguments = f"{tiny_model_folder} --images 2 --device cpu --dtypes float32 --json {written}"
    arguments += f" --recipes {recipe} --output {tmp_path / 'runs'} -- data_root={tmp_path} limit=3"
    monkeypatch.setattr(sys, "argv", ["model_comparison", *arguments.split()])
    model_comparison.main()
    assert measured == [(str(tiny_model_folder), "float32", "cpu", 2)]
    (row,) = json.loads(written.read_text(encoding="utf-8"))
    network = tiny_model.network
    assert row["millions"] == pytest.approx(sum(one.numel() for one in network.parameters()) / 1e6, rel=0.05)
    assert row["scores"].keys() == {"dogs: Accuracy"}
    assert min(row["load"], row["caption"], row["answer"], row["batched"]) > 0
    head, _, told = capsys.readouterr().out.splitlines()[-3:]
    assert "dogs: Accuracy" in head
    assert told.startswith("| tiny | float32 | EfficientNet 64 px | Opt |")
    assert (tmp_path / f"runs/dogs-{tiny_model_folder.name}-float32/report.html").is_file()
