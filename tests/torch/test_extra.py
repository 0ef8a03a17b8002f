"""Without PyTorch the import says what to install."""

from __future__ import annotations

import subprocess
import sys


def test_without_torch():
    """`import splitquant.torch` names the extra that is missing."""
    code = "import sys; sys.modules['torch'] = None; import splitquant.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: torch is needed here" in done.stderr
    assert "pip install 'splitquant[torch]'" in done.stderr
