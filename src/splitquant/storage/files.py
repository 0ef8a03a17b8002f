"""Positioned reads and writes on open files, with errors that name the file; the only place that touches tensor bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from splitquant.core.arrays import U8
from splitquant.errors import DestinationError, SourceError


class SourceFile:
    """A file opened for positioned reads; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise SourceError(f"{path}: cannot be opened ({error.strerror})") from error

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return os.fstat(self._fd).st_size

    def read_into(self, buffer: U8, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`; SourceError if the file ends before."""
        view, done = buffer.data.cast("B"), 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"{self.path}: reading failed at byte {offset + done} ({error.strerror})") from error
            if got == 0:
                raise SourceError(f"{self.path}: ends at byte {offset + done}; it was cut short while being read")
            done += got

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TargetFile:
    """A file of known size, written at positions in any order; safe to share between threads."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise destination_error(path, error) from error
        # Threads that write one file at once spin on its lock in the kernel, at several times the cost.
        self._turn = threading.Lock()
        try:
            _reserve(self._fd, nbytes)
        except OSError as error:
            os.close(self._fd)
            raise destination_error(path, error) from error

    def write(self, data: U8 | bytes, offset: int) -> None:
        """Write `data` at `offset`; DestinationError when it cannot be."""
        view = memoryview(data) if isinstance(data, bytes) else data.data.cast("B")
        done = 0
        with self._turn:
            while done < len(view):
                try:
                    done += os.pwrite(self._fd, view[done:], offset + done)
                except OSError as error:
                    raise destination_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; DestinationError where the system reports a late write error."""
        try:
            os.close(self._fd)
        except OSError as error:
            raise destination_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a file, at most so many; SourceError where it cannot be read."""
    with SourceFile(path) as file:
        buffer = np.empty(min(file.nbytes, most), np.uint8)
        file.read_into(buffer, 0)
    return buffer.tobytes()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all; what grows has a name that nobody can foresee, so that no link lies in wait there.

    Raises:
        DestinationError: where it cannot be written.
    """
    growing = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        fd = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            growing.replace(path)
        except BaseException:
            with suppress(OSError):
                growing.unlink()
            raise
    except OSError as error:
        raise destination_error(path, error) from error


def _reserve(fd: int, nbytes: int) -> None:
    """Give a file its size, and the room on the disk where the file system can: a full disk then shows before the work.

    fallocate itself, not posix_fallocate, which where it is not supported writes into every block.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is not None and nbytes > 0:
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if fallocate(fd, 0, 0, nbytes) == 0:
            return
        if ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.ftruncate(fd, nbytes)


def narrow_permissions(path: Path, like: Path) -> None:
    """Take from a new file the permissions that the file it was made of does not give: who may not read that may not read this.

    Raises:
        DestinationError: where they cannot be changed.
    """
    try:
        mode, allowed = (stat.S_IMODE(file.stat().st_mode) for file in (path, like))
        if mode & ~allowed:
            path.chmod(mode & allowed)
    except OSError as error:
        raise destination_error(path, error) from error


def destination_error(path: Path, error: OSError) -> DestinationError:
    """The clear form of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DestinationError(f"{path}: no room left on the disk; free some, or write to another place with -o")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DestinationError(
            f"{path}: may not be written ({error.strerror}); choose a place you can write to with -o"
        )
    return DestinationError(f"{path}: cannot be written ({error.strerror or error}); choose another place")
