"""What all tests share: the builders can be imported from any of them (`from builders.folders import ...`), and examples stay.

Hypothesis draws the same examples in every run, so that a failure belongs to a change and not to chance; for a search with
new ones: HYPOTHESIS_PROFILE=search.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
