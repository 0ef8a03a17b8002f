"""CRC-32 of pieces that were computed apart, put together in order.

Exists because windows of one plane are encoded by several threads, and the checksum of the plane must not depend on how
it was cut. A CRC is a remainder of polynomials over GF(2): crc(A + B) = crc(A) * x**(8 * len(B)) + crc(B).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from splitquant.core.arrays import U8
from splitquant.core.kernels import kernels
from splitquant.storage.files import SourceFile

_POLYNOMIAL = 0xEDB88320  # of CRC-32, bit-reversed as in zlib
_READ_BYTES = 4 << 20
_ONE = 1 << 31  # the polynomial 1 in that order of bits


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 of `nbytes` bytes."""

    crc: int
    nbytes: int

    @classmethod
    def of(cls, data: U8) -> Checksum:
        """The checksum of one piece, uint8 `[n]`."""
        return cls(kernels().crc32(data), len(data))

    def __str__(self) -> str:
        return f"{self.crc:08x}"


def join(pieces: Iterable[Checksum]) -> Checksum:
    """The checksum of pieces laid end to end."""
    crc, nbytes = 0, 0
    for piece in pieces:
        crc = _times(crc, _power_of_x(8 * piece.nbytes)) ^ piece.crc
        nbytes += piece.nbytes
    return Checksum(crc, nbytes)


def checksum_of(file: SourceFile, start: int, nbytes: int) -> Checksum:
    """The checksum of some bytes of a file; SourceError where they cannot be read."""
    buffer = np.empty(min(_READ_BYTES, nbytes), np.uint8)

    def pieces() -> Iterator[Checksum]:
        for at in range(0, nbytes, _READ_BYTES):
            piece = buffer[: min(_READ_BYTES, nbytes - at)]
            file.read_into(piece, start + at)
            yield Checksum.of(piece)

    return join(pieces())


def _times(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@cache
def _power_of_x(exponent: int) -> int:
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _times(result, square)
        square = _times(square, square)
        exponent >>= 1
    return result
