"""What the ONNX tests share: the builders of `onnx_models.py` can be imported from any of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
sys.path.insert(0, str(Path(__file__).parent))
