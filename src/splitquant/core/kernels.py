"""Which kernels run: the compiled module where it was built, else its NumPy twin.

Both give the same bytes (`tests/properties/test_kernels.py`). `SPLITQUANT_KERNELS=numpy` or `=native` chooses by hand.
"""

from __future__ import annotations

import os
from functools import cache

from splitquant.core.interface import Kernels
from splitquant.core.reference import NumpyKernels
from splitquant.errors import SpecError


@cache
def kernels() -> Kernels:
    """The kernels in use.

    Raises:
        SpecError: if the compiled ones are demanded and were not built, or `SPLITQUANT_KERNELS` is no choice.
    """
    wanted = os.environ.get("SPLITQUANT_KERNELS", "auto")
    if wanted not in ("auto", "native", "numpy"):
        raise SpecError(f"SPLITQUANT_KERNELS is {wanted!r}; expected 'auto', 'native' or 'numpy'")
    if wanted == "numpy":
        return NumpyKernels()
    try:
        from splitquant.core.native import NativeKernels  # noqa: PLC0415 - it may not have been built
    except ImportError as error:
        if wanted == "native":
            raise SpecError(
                "SPLITQUANT_KERNELS is 'native' and this installation has no compiled kernels; "
                "reinstall with a C++20 compiler at hand, or unset the variable"
            ) from error
        return NumpyKernels()
    return NativeKernels()
