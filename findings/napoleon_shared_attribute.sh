#!/usr/bin/env bash
# Sphinx==9.0.4 (sphinx.ext.napoleon)
# In Google style docstrings, one entry for two names, "width, height: in pixels", becomes two parameters under "Args:".
# Under "Attributes:", with napoleon_use_ivar, it becomes one variable `height` of the type `width,`; `width` is gone.
# There is no warning unless nitpicky is set, which then misses a class named "width".
#
# Seen:
#   Args:       :param width: in pixels. | :param height: in pixels.
#   Attributes: :ivar width, height: in pixels.
#   the page:   height (width,) -- in pixels.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet sphinx==9.0.4 docutils==0.22.4

mkdir docs
cat >docs/conf.py <<'PYTHON'
import sys
sys.path.insert(0, ".")
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_use_ivar = True
PYTHON
cat >module.py <<'PYTHON'
class Size:
    """A size.

    Attributes:
        width, height: in pixels.
    """
PYTHON
printf 'Title\n=====\n\n.. autoclass:: module.Size\n' >docs/index.rst

venv/bin/python - <<'PYTHON'
from sphinx.ext.napoleon import Config, GoogleDocstring

for section in ("Args", "Attributes"):
    lines = GoogleDocstring(f"{section}:\n    width, height: in pixels.", Config(napoleon_use_ivar=True)).lines()
    print(f"{section}:", " | ".join(line for line in lines if line))
PYTHON
PYTHONPATH=. venv/bin/sphinx-build -q -W -b text docs site
page=$(grep "in pixels" site/index.txt)
echo "the page:$page"
grep -q "height.*(.*width.*,.*)" <<<"$page" || { echo "the behaviour has changed" >&2; exit 1; }
