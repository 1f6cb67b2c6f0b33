"""`python -m openblip` is the same as the command `openblip`."""

from __future__ import annotations

from openblip.cli import main

if __name__ == "__main__":
    main()
