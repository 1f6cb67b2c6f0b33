"""Running all benchmarks: what is asked of each, what is written of it, and the chart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script as a module: it finds its neighbours as it does when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load


def figures(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return path


def row(name: str, value: float, unit: str = "times as fast", less: bool = False) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "ours": None, "theirs": None, "less_is_better": less}


def test_every_step_is_a_script_that_takes_what_it_is_given(script: Callable[[str], ModuleType]) -> None:
    run = script("run")
    for steps in (*run.SIZES.values(), run.quality("data")):
        assert len({step.name for step in steps}) == len(steps)
        for step in steps:
            source = (BENCHMARKS / step.arguments[0]).read_text(encoding="utf-8")
            asked = [argument for argument in step.arguments if argument.startswith("--")]
            asked += [step.rounds] if step.rounds else []
            asked += ["--threads"] if step.threads else []
            for option in asked:
                assert f'"{option}"' in source, (step.name, option)
            assert '"--json"' in source or "add_json_option(parser)" in source
    sizes = script("real_size").SIZES
    asked = {
        word.strip("{}").partition("@")[0]
        for step in run.SIZES["full"]
        for word in step.arguments
        if word.startswith("{")
    }
    assert asked == {"opt", "t5"} <= set(sizes)


def test_marks_stand_beside_their_rows_and_in_the_chart(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plot = script("run"), script("plot")
    fast = figures(tmp_path, "engine", [row("greedy", 5.0), row("beam 5", 9.0), row("decode", 60.0, "%")])
    small = figures(tmp_path, "memory", [row("peak", 4.0, "GB", less=True), row("other", 9.0, "GB", less=True)])
    run.mark(fast, {"greedy": (3.2, 4), "decode": (80, 90)})
    run.mark(small, {"peak": (4.8, 4.0)})
    run.mark(tmp_path / "none.json", {})
    rows = plot.read_rows(tmp_path)
    assert [(one.name, one.length, one.bar, one.goal) for one in plot.ratios(rows)] == [
        ("engine: greedy", 5.0, 3.2, 4),
        ("engine: beam 5", 9.0, None, None),
    ]
    decode, peak = plot.shares(rows)
    assert (decode.length, decode.bar, decode.label) == (0.75, 1.0, "60 %")
    assert (peak.length, peak.goal) == (pytest.approx(1.2), pytest.approx(1.2))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    plot.main()
    with Image.open(tmp_path / "bench.png") as image:
        assert min(image.size) > 200 and len(image.convert("RGB").getcolors(2**24) or ()) > 10
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(sys, "argv", ["plot.py", str(empty)])
    with pytest.raises(SystemExit, match=r"has no figures: run benchmarks/run\.py first"):
        plot.main()


def test_one_that_fails_does_not_keep_the_others_from_running(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = script("run")
    ran: list[list[str]] = []

    def pretend(command: list[str], check: bool) -> None:
        ran.append(command[1:])
        if "engine.py" in command[1]:
            raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(run.subprocess, "run", pretend)
    monkeypatch.setattr(sys, "argv", ["run.py", "tiny", "--output", str(tmp_path), "--rounds", "2"])
    with pytest.raises(SystemExit) as left:
        run.main()
    assert left.value.code == 1
    assert "opt-int8 failed with exit code 3" in capsys.readouterr().err
    names = [command[1] if command[0] == "-m" else Path(command[0]).name for command in ran]
    assert (
        names.count("engine.py") == 5
        and names.count("real_size.py") == 10
        and names.count("openblip") == 2
        and names[-1] == "plot.py"
    )
    (load,) = (command for command in ran if "load_time.py" in command[0])
    assert load[1] == str(tmp_path / "weights" / "tiny") and load[-4:] == ["--rounds", "2", "--threads", "2"]
    monkeypatch.setattr(sys, "argv", ["run.py", "tiny", "--only", "nothing"])
    with pytest.raises(SystemExit):
        run.main()
    assert "there is no benchmark nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_all_that_needs_weights_runs_at_a_tiny_size(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """The same path as at real size; every mark that is held against real size has its row."""
    command = ["run.py", "tiny", "--output", str(tmp_path), "--rounds", "1", "--threads", "1"]
    subprocess.run([sys.executable, str(BENCHMARKS / command[0]), *command[1:]], check=True)
    run = script("run")
    for step in run.of_size("opt", "t5", marked=True):
        content = json.loads((tmp_path / "tiny" / f"{step.name}.json").read_text(encoding="utf-8"))
        assert set(step.marks) <= {one["name"] for one in content["rows"]}
        assert content["ceilings"]["memory GB/s"] > 0
    assert (tmp_path / "tiny" / "bench.png").is_file()
