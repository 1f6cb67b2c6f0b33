"""The command `openblip`, and `python -m openblip`, which is the same."""

from __future__ import annotations

import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        from openblip.cli import main as run
    except KeyboardInterrupt:
        # Nothing was begun yet, so there is nothing to say.
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
