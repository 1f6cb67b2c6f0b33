#!/usr/bin/env bash
# safetensors==0.8.0
# The same tensors with the same metadata, saved twice by one program, give files of different bytes: the entries of
# "__metadata__" come in an order that is drawn at random for every file, although JSON objects and Python dictionaries
# keep theirs, and tensors are sorted. Checksums, caches by content and reproducible builds see other files each time.
# With one entry of metadata, such as {"format": "pt"}, files are always alike.
#
# Seen:
#   three entries of metadata: several files out of 50 saves of one content
#   one entry of metadata: 1 file out of 50 saves of one content
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet safetensors==0.8.0 numpy==2.2.6

venv/bin/python - <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import save

tensors = {"weight": np.zeros(4, np.float32)}
several = {save(tensors, metadata={"a": "1", "b": "2", "c": "3"}) for _ in range(50)}
single = {save(tensors, metadata={"format": "pt"}) for _ in range(50)}
print(f"three entries of metadata: {len(several)} files out of 50 saves of one content")
print(f"one entry of metadata: {len(single)} file out of 50 saves of one content")
if len(several) == 1 or len(single) != 1:
    sys.exit("the behaviour has changed")
PYTHON
