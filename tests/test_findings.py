"""Every script in findings/ can be run, pins what it installs, says so, and is listed in the README once."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[1] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def faults(script: Path, text: str, readme: str) -> list[str]:
    """What a reader of the script, or of the table, would miss."""
    installs = re.findall(r"\bpip\b[^\n]*\binstall\b((?:[^\n\\]|\\\n)*)", text)
    wanted = [word for line in installs for word in line.split() if not word.startswith(("-", "\\"))]
    header = "\n".join(line for line in text.splitlines()[1:12] if line.startswith("#"))
    found = {
        "does not begin with #!/usr/bin/env bash": text.startswith("#!/usr/bin/env bash\n"),
        "cannot be executed: chmod +x": os.access(script, os.X_OK),
        "does not stop at errors: set -euo pipefail": "\nset -euo pipefail\n" in text,
        "installs no package": bool(wanted),
        "installs a package without an exact version": all("==" in word for word in wanted),
        "does not name package==version in its header": re.search(r"[\w-]+==[\d.]+", header) is not None,
        "does not work in a temporary folder": "mktemp -d" in text,
        "cannot fail": "exit 1" in text or 'sys.exit("' in text,
        "has no row in findings/README.md": len(re.findall(rf"^\| \[{script.name}\]", readme, re.MULTILINE)) == 1,
        "uses OpenBLIP": not re.search(r"^\s*(import|from) openblip|install[^\n]*openblip", text, re.MULTILINE),
    }
    return [fault for fault, well in found.items() if not well]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_is_in_order(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert faults(script, text, (FINDINGS / "README.md").read_text(encoding="utf-8")) == []
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_row_has_its_script() -> None:
    rows = re.findall(r"^\| \[(.*?)\]\((.*?)\)", (FINDINGS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == [(script.name, script.name) for script in SCRIPTS]
    assert rows


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (("sphinx==9.0.4", "sphinx"), "without an exact version"),
        (("# Sphinx==9.0.4", "# Sphinx"), "in its header"),
        (("exit 1", "exit 0"), "cannot fail"),
        (("mktemp -d", "echo /tmp"), "temporary folder"),
        (("#!/usr/bin/env bash", "#!/bin/sh"), "does not begin"),
    ],
)
def test_a_fault_is_found(damage: tuple[str, str], fault: str) -> None:
    script = FINDINGS / "sphinx_second_strict_build.sh"
    text = script.read_text(encoding="utf-8").replace(*damage)
    (found,) = faults(script, text, (FINDINGS / "README.md").read_text(encoding="utf-8"))
    assert fault in found
