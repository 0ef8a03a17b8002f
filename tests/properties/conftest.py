"""What the laws of several kernels share."""

from __future__ import annotations

import pytest

try:
    import splitquant._native as native
except ImportError:  # the modules that need it skip themselves
    native = None


@pytest.fixture(params=[] if native is None else native.isas())
def isa(request):
    """Each instruction set of this machine in turn."""
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)
