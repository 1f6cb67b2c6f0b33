"""Programs that tests send signals to."""

from __future__ import annotations

import signal


def heed_signals() -> None:
    """For `preexec_fn`: the program heeds signals though it is started where they are ignored.

    A shell that runs commands in the background has them ignore Ctrl-C, nohup the end of the terminal.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
