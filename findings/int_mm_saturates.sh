#!/usr/bin/env bash
# torch==2.13.0 (torch._int_mm on x86 CPUs without VNNI)
# The product of two int8 matrices with an int32 result is not exact, even for inputs far from the limits of int8. oneDNN
# adds pairs of products in 16 bits, which saturate, and tells nobody. On CPUs with VNNI the same numbers are exact.
#
# Seen, 5 x 64 by 64 x 300 random numbers, ONEDNN_MAX_CPU_ISA=AVX2, wrong results of 1,500:
#   inputs up to 127: 983   63: 508   31: 154
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet torch==2.13.0

ONEDNN_MAX_CPU_ISA=AVX2 venv/bin/python - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
counts = {}
for limit in (127, 63, 31):
    rows = torch.randint(-limit, limit + 1, (5, 64)).to(torch.int8)
    columns = torch.randint(-127, 128, (64, 300)).to(torch.int8)
    exact = rows.long() @ columns.long()
    counts[limit] = int((torch._int_mm(rows, columns) != exact).sum())
print("inputs up to", "   ".join(f"{limit}: {count}" for limit, count in counts.items()))
if not all(counts.values()):
    sys.exit("the behaviour has changed")
PYTHON
