"""The command line: parse, call, print. No logic lives here."""

from __future__ import annotations

import sys


def start() -> None:
    """The console script: a signal that comes while modules are still imported ends it without a traceback, too."""
    try:
        from splitquant.cli.signals import raise_on_signals

        raise_on_signals()
        from splitquant.cli.main import run
    except KeyboardInterrupt as stop:
        sys.stderr.write("error: interrupted\n")
        sys.exit(getattr(stop, "exit_code", 130))
    run()
