"""The page docs/cli.md, made from the commands' own help: `python tests/docs/cli_page.py` rewrites it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
HEAD = """# Command line

Made from `splitquant --help` by `python tests/docs/cli_page.py`. Results go to standard output, talk and errors to standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. `splitquant --install-completion` sets up tab completion.
"""


def page() -> str:
    """The text that the page must have."""
    verbs = ["", *sorted(line.split()[0] for line in _commands(_help()))]
    return HEAD + "".join(f"\n## splitquant {verb}".rstrip() + f"\n\n```\n{_help(verb)}```\n" for verb in verbs)


def _commands(text: str) -> list[str]:
    lines = text.split("Commands:\n")[1].splitlines()
    return [line for line in lines if line.startswith("  ") and line[2] != " "]


def _help(verb: str = "") -> str:
    command = [sys.executable, "-m", "splitquant.cli.main", *verb.split(), "--help"]
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERMINAL_WIDTH": "80"}
    text = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return text.replace("python -m splitquant.cli.main", "splitquant").replace("main.py", "splitquant")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
