"""What a reader pastes into a shell, or hands to a scheduler, is a program for it: nothing is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:sh|bash|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def scripts() -> dict[str, str]:
    """Shell of every page and of the recipes, by where it stands."""
    found = {}
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            found[f"{page.relative_to(ROOT)}, block {number}"] = block
    for suffix in ("sh", "sbatch"):
        for path in sorted(ROOT.glob(f"recipes/**/*.{suffix}")):
            found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    return found


def fault(script: str) -> str:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False, timeout=600)
    return done.stderr or ("" if done.returncode == 0 else "fails")


def test_bash_reads_every_block() -> None:
    found = scripts()
    for place in ("docs/cluster.md, block 1", "docs/deploy.md, block 1", "recipes/mini/train.sh"):
        assert place in found
    faults = {place: said for place, script in found.items() if (said := fault(script))}
    assert not faults


@pytest.mark.parametrize("script", ["if true; then\n", "echo 'open\n", "for i in 1 2; echo $i; done\n"])
def test_faults_are_found(script: str) -> None:
    assert fault(script)
