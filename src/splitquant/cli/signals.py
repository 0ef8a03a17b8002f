"""What ends a run from outside: Ctrl-C, a terminal that closes, a scheduler's SIGTERM; all end it with the same care."""

from __future__ import annotations

import signal
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal that asks to stop; taken as Ctrl-C is, but for the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise `Stopped`; those that are ignored (nohup) stay so."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a protocol
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it."""
    return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT
