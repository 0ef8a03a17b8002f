"""The place where an output grows: free after a failure, and taken up for the same files alone, on whatever machine."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from splitquant.errors import DestinationError, SourceError
from splitquant.storage import workplace
from splitquant.storage.workplace import Workplace, fingerprint_of


def open_descriptors():
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def _full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_workplace_is_free_after_a_failure(tmp_path, monkeypatch):
    """After a failure the place is free at once, and no descriptor stays open."""
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(RuntimeError), Workplace(tmp_path / "q", "one"):
            raise RuntimeError
    (tmp_path / ".q.partial").write_text("a file in its way")
    for _ in range(3):
        with pytest.raises(DestinationError), Workplace(tmp_path / "q", "one"):
            pass
    (tmp_path / ".q.partial").unlink()
    monkeypatch.setattr(Path, "open", _full_disk)
    for _ in range(3):
        with pytest.raises(DestinationError), Workplace(tmp_path / "q", "one"):
            pass
    assert open_descriptors() == before


def written(path, data, changed=1_700_000_000_123_456_789):
    """A file of that content, last changed at that time."""
    path.write_bytes(data)
    os.utime(path, ns=(changed, changed))
    return path


DATA = np.random.default_rng(1).integers(0, 256, 1_000_000, np.uint8).tobytes()


def test_a_copy_has_the_same_fingerprint(tmp_path):
    """Nothing of it is about this disk or this machine: a copy that kept its time is the same file."""
    one = written(tmp_path / "a", DATA)
    (tmp_path / "elsewhere").mkdir()
    other = shutil.copy2(one, tmp_path / "elsewhere" / "b")
    assert one.stat().st_ino != other.stat().st_ino
    assert fingerprint_of(one) == fingerprint_of(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": DATA + b"\0"},
        {"data": b"\0" + DATA[1:]},
        {"data": DATA[:-1] + b"\0"},
        {"data": DATA[::-1]},
        {"changed": 1},
    ],
    ids=["a byte more", "the first byte", "the last byte", "other bytes", "another time"],
)
def test_another_file_has_another_fingerprint(tmp_path, changes):
    one = written(tmp_path / "a", DATA)
    assert fingerprint_of(one) != fingerprint_of(written(tmp_path / "b", **{"data": DATA, **changes}))


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 300_000])
def test_files_of_any_size(tmp_path, nbytes):
    """Every byte of a small file is looked at."""
    data = bytes(i % 251 for i in range(nbytes))
    one = fingerprint_of(written(tmp_path / "a", data))
    assert one == fingerprint_of(written(tmp_path / "b", data))
    for at in {0, nbytes // 2, nbytes - 1} if 0 < nbytes <= 64 * 4096 else ():
        changed = bytearray(data)
        changed[at] ^= 1
        assert one != fingerprint_of(written(tmp_path / "c", bytes(changed)))


def test_a_large_file_is_sampled(tmp_path, monkeypatch):
    """However large, some hundred kilobytes are read."""
    read = []
    original = workplace.SourceFile.read_into

    def read_into(self, buffer, offset):
        read.append(len(buffer))
        original(self, buffer, offset)

    monkeypatch.setattr(workplace.SourceFile, "read_into", read_into)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**10)
    fingerprint_of(tmp_path / "large")
    assert 0 < sum(read) <= 1 << 20


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="nowhere: cannot be opened"):
        fingerprint_of(tmp_path / "nowhere")
