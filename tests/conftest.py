"""What all tests share: the builders of `folders.py` can be imported from any of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
