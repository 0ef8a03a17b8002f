"""Folders are written byte for byte as they always were; `folder_bytes.json` holds what SHA-256 begins with."""

import hashlib
import json
from pathlib import Path

import pytest

from builders.folder_cases import CASES, written

EXPECTED = json.loads(Path(__file__).with_name("folder_bytes.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_bytes(case, tmp_path):
    """Same input, same options, same bytes: in every file, on every machine, with either kernels."""
    found = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in written(case, tmp_path).items()}
    assert found == EXPECTED[case.name]
