#!/usr/bin/env bash
# torch==2.13.0 (x86 builds with MKL and libgomp)
# omp_set_num_threads(1), called in a thread of one's own, makes torch.get_num_threads() say 1 there, and element-wise
# operations follow it. Matrix products do not: MKL keeps a count of its own, which torch.set_num_threads has set for the
# whole process, and shares them among as many threads as before. Only MKL_Set_Num_Threads_Local, which the same library
# exports, reaches it.
#
# Seen, processors used by products of 1500 x 1500 in such a thread (CPU time / time on the clock, on a quiet machine):
#   torch.get_num_threads() 1, omp_set_num_threads(1): 2 threads worked   with MKL_Set_Num_Threads_Local(1): 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 numpy==2.4.6

venv/bin/python - <<'PYTHON'
import ctypes
import os
import sys
import threading
from pathlib import Path

import torch

if not torch.backends.mkl.is_available() or (os.cpu_count() or 1) < 2:
    print("this needs MKL and two processors: nothing was shown")
    sys.exit(0)
torch.set_num_threads(2)
library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
process = ctypes.CDLL(None)


def worked():
    """Ticks of the CPU by thread of this process."""
    ticks = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])
    return ticks


def count(local):
    found = {}

    def run():
        torch.get_num_threads()  # the first call in a thread sets what comes next
        process.omp_set_num_threads(1)
        if local:
            library.MKL_Set_Num_Threads_Local(1)
        found["said"] = torch.get_num_threads()
        x = torch.randn(1500, 1500)
        before = worked()
        for _ in range(40):
            x @ x
        after = worked()
        spent = [ticks - before.get(task, 0) for task, ticks in after.items()]
        found["threads"] = sum(ticks > max(spent) / 4 for ticks in spent)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


plain, local = count(False), count(True)
print(
    f"torch.get_num_threads() {plain['said']}, omp_set_num_threads(1): {plain['threads']} threads worked   "
    f"with MKL_Set_Num_Threads_Local(1): {local['threads']}"
)
if (plain["said"], plain["threads"], local["threads"]) != (1, 2, 1):
    sys.exit("the behaviour has changed")
PYTHON
