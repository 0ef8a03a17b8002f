"""Claim: `splitquant --help` answers in under 0.3 s, `import splitquant` takes under 0.15 s."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.speed.whole_process import in_turn, median

PROGRAM = str(Path(sys.executable).with_name("splitquant"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import splitquant'": [sys.executable, "-c", "import splitquant"],
    "splitquant --help": [PROGRAM, "--help"],
}

if __name__ == "__main__":
    rounds = in_turn(list(COMMANDS.values()), 10, lambda: None)
    for index, name in enumerate(COMMANDS):
        print(f"{name:32} {median([results[index].wall_seconds for results in rounds]):.3f} s")
