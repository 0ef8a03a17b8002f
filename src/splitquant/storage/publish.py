"""Giving a complete output its name: on the disk before it can be seen, one run at a time, what it replaces in sight until then."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitquant.errors import DestinationError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.05


def try_lock(fd: int) -> bool:
    """Take the lock of an open file or folder until it is closed; False where another run has it.

    File systems without locks (some of networks) give none, and then nothing keeps two runs apart.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


@contextmanager
def turn_in(folder: Path) -> Iterator[None]:
    """One run at a time gives names in a folder.

    Raises:
        OSError: where the folder cannot be opened.
        DestinationError: where another run holds it for a minute.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not try_lock(held):
            if time.monotonic() > until:
                raise DestinationError(
                    f"{folder}: another process has had the lock of this folder for a minute; end it, or choose another "
                    "place with -o"
                )
            time.sleep(_PAUSE_SECONDS)
        yield
    finally:
        os.close(held)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths trade names in one step; False where the system cannot, and then nothing has changed."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk; OSError where they cannot be."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that knows no such thing
            raise
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """`sync` for all files and folders below a folder, and the folder itself."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))
