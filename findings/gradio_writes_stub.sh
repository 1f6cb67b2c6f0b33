#!/usr/bin/env bash
# gradio==6.31.0 (components)
# A class that inherits from a component makes Gradio write a stub, NAME.pyi, beside the module in which it is defined,
# as soon as the module runs; nothing is logged, and no option turns it off. The stub is a copy of the source with event
# methods put in. Type checkers read stubs instead of modules, so from then on they check the copy: what is wrong in
# NAME.py later is not found until the program has run again. (To change a component's methods without a class of one's
# own, set them on the instance.)
#
# Seen: beside app.py alone, before: nothing; after: app.pyi with `class Photo`; and a mistake that is then added to
# app.py is found by mypy (2.4.1) without the stub, and not with it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet gradio==6.31.0 mypy==2.4.1

mkdir project
cat > project/app.py <<'PYTHON'
import gradio


class Photo(gradio.Image):
    def shown(self) -> int:
        return 1
PYTHON
venv/bin/python project/app.py
echo 'number: int = "one"' >> project/app.py

venv/bin/python - <<'PYTHON'
import subprocess
import sys
from pathlib import Path

stub = Path("project/app.pyi")
if not (stub.is_file() and "class Photo" in stub.read_text()):
    sys.exit("the behaviour has changed: no stub")


def faults() -> bool:
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=skip", "-p", "app"]
    return "Incompatible types" in subprocess.run(command, cwd="project", capture_output=True, text=True).stdout


with_stub = faults()
stub.unlink()
without = faults()
print(f"stub written; the mistake is found with the stub: {with_stub}, without it: {without}")
if with_stub or not without:
    sys.exit("the behaviour has changed")
PYTHON
