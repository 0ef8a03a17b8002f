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


def place_of(path, mode=0o700):
    """A workplace as a killed run leaves it."""
    (path / workplace.STATE).mkdir(parents=True)
    (path / workplace.STATE / "fingerprint").write_text("one")
    path.chmod(mode)
    return path


def test_what_others_made_is_not_used(tmp_path, monkeypatch):
    """A folder, or a link, that lies in wait where the output will grow is named and left alone."""
    place = place_of(tmp_path / ".q.partial")
    for mode in (0o777, 0o770, 0o702):
        place.chmod(mode)
        with pytest.raises(DestinationError, match=rf"can be written by others \(mode {mode:o}\); move it away"):
            Workplace(tmp_path / "q", "one").__enter__()
    place.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(DestinationError, match=r"\.q\.partial: .* belongs to user \d+; move it away"):
            Workplace(tmp_path / "q", "one").__enter__()
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DestinationError, match=r"\.q\.partial: .* is no folder; move it away"):
        Workplace(tmp_path / "q", "one").__enter__()
    assert (tmp_path / "elsewhere" / workplace.STATE / "fingerprint").read_text() == "one"


def test_nobody_else_can_write_there(tmp_path):
    """Whatever the umask; the output has the usual permissions."""
    old = os.umask(0o002)
    try:
        with Workplace(tmp_path / "q", "one") as place:
            assert place.path.stat().st_mode & 0o777 == 0o700
            place.publish()
    finally:
        os.umask(old)
    assert (tmp_path / "q").stat().st_mode & 0o777 == 0o775


def test_a_foreign_old_folder_is_not_given_the_name(tmp_path, monkeypatch):
    """`.q.replaced` is put back where it is ours alone."""
    (tmp_path / ".q.replaced").mkdir()
    monkeypatch.setattr(workplace, "_is_own_folder", lambda _: False)
    with Workplace(tmp_path / "q", "one"):
        assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, number):
    """Some networks' have none; that is not taken for another run."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with Workplace(tmp_path / "q", "one") as place:
        place.publish()
    assert (tmp_path / "q").is_dir()


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Every file and folder is synced before the output can be seen, and the name after; without `durable` nothing is."""
    done = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1]
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    for durable in (True, False):
        done.clear()
        with Workplace(tmp_path / f"q{durable}", "one", durable=durable) as place:
            place.write_text("a.txt", "a")
            place.write_text("sub/b.txt", "b")
            place.publish()
        names = [name.removeprefix(f"{tmp_path}/") for name in done]
        if durable:
            before, after = names[: names.index("rename")], names[names.index("rename") + 1 :]
            assert {".qTrue.partial", ".qTrue.partial/a.txt", ".qTrue.partial/sub/b.txt", ".qTrue.partial/sub"} <= set(
                before
            )
            assert after[0] == str(tmp_path)
        else:
            assert names == ["rename"]
