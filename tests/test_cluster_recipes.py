"""The recipes of docs/cluster.md: they can be read, and their commands are accepted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"


def recipes(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    """Every `openblip run` of the page, with the variables of schedulers filled in; not those that ask a storage."""
    yaml = pytest.importorskip("yaml")
    job, ray_job = (yaml.safe_load(text) for text in recipes("yaml"))
    found: list[str] = [ray_job["spec"]["entrypoint"], *job["spec"]["template"]["spec"]["containers"][0]["args"]]
    found += [line for text in recipes("sh") for line in text.splitlines() if line.startswith("openblip run")]
    found = [command.removesuffix(" || test $? -eq 1") for command in found if "s3://" not in command]
    values = {"$((JOB_COMPLETION_INDEX + 1))": "3", "$JOB_COMPLETION_INDEX": "2", "$SLURM_ARRAY_TASK_ID": "3"}
    for name, value in (values | {"$head": "192.0.2.1"}).items():
        found = [command.replace(name, value) for command in found]
    return found


def test_what_is_claimed_is_mounted() -> None:
    yaml = pytest.importorskip("yaml")

    def pods(value: Any) -> Any:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from pods(inner)
        if isinstance(value, dict) and "containers" in value:
            yield value

    found = [pod for text in recipes("yaml") for pod in pods(yaml.safe_load(text))]
    assert len(found) == 3
    for pod in found:
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]} == {"photos"}


def test_commands_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("image\n" + "a.jpg\n" * 16, encoding="utf-8")
    accepted = commands()
    assert len(accepted) == 6 and not any("$" in command for command in accepted)
    program = f"""
import sys
from openblip.__main__ import main
for command in {accepted!r}:
    import shlex
    sys.argv = [*shlex.split(command.replace("/photos/", "")), "--dry-run"]
    try:
        main()
    except SystemExit as left:
        assert not left.code, command
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("new columns caption, error") == len(accepted)
    assert "rows        1 of 16" in done.stdout and shlex.split(accepted[0])[0] == "openblip"
