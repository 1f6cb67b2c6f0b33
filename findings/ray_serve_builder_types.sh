#!/usr/bin/env bash
# ray==2.60.0 (ray[serve])
# An application builder whose argument is typed as a pydantic model gets an instance of it, checked and with defaults; so
# says Ray Serve's guide. With `from __future__ import annotations` at the top of the module it gets a plain dict of text
# instead, unchecked and without defaults, and nothing is logged: the annotation is then a string, which is never looked up.
# Arguments of the wrong type and misspelled names pass.
#
# Seen, the argument of the builder (called as `serve run` does): with the import dict {'word': 'x', 'count': 'three'}
#   without it Settings(word='x', count=3), and 'three' is refused
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet 'ray[serve]==2.60.0'

cat > plain.py <<'PYTHON'
from pydantic import BaseModel
from ray import serve


class Settings(BaseModel):
    word: str = "a"
    count: int = 1


@serve.deployment
class Answer:
    pass


SEEN = []


def build(settings: Settings) -> serve.Application:
    SEEN.append(settings)
    return Answer.bind()
PYTHON
{ echo 'from __future__ import annotations'; cat plain.py; } > postponed.py

venv/bin/python - <<'PYTHON'
import sys

from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

import plain
import postponed

call(plain.build, {"word": "x", "count": "3"})
call(postponed.build, {"word": "x", "count": "three"})
try:
    call(plain.build, {"word": "x", "count": "three"})
    refused = False
except ValueError:
    refused = True
good, raw = plain.SEEN[0], postponed.SEEN[0]
print(f"with the import {type(raw).__name__} {raw}   without it {type(good).__name__} {good!r}, 'three' refused: {refused}")
if type(raw) is not dict or type(good) is not plain.Settings or not refused:
    sys.exit("the behaviour has changed")
PYTHON
