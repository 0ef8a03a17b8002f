"""The ONNX tests need the onnx extra."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
