"""The output appears complete or not at all, never over the source, and nothing is left of a run that failed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from builders.folders import normal, tiny_folder, tiny_sharded, tree, write_folder
from splitquant.api import dequantize, quantize
from splitquant.checkpoint import shard
from splitquant.errors import DestinationError, SourceError, TensorError
from splitquant.storage import files, workplace


@pytest.fixture
def source(tmp_path):
    """A sharded source in a folder of its own."""
    return tiny_sharded(tmp_path / "m", files={"tokenizer.json": "{}", "README.md": "# m"})


def open_descriptors():
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def names(path):
    """What lies in a folder."""
    return sorted(p.name for p in path.iterdir())


def fill(path):
    """A folder with a file in it."""
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("precious")
    return path


OLD = {"config.json": b"{}", "notes.txt": b"precious"}


def old_model(path):
    """A model folder that may be replaced."""
    (fill(path) / "config.json").write_text("{}")
    return path


def test_new_folder(tmp_path, source):
    """A new folder gets its parents, and nothing lies beside it afterwards."""
    quantize(source, tmp_path / "a/b/q")
    assert names(tmp_path / "a/b") == ["q"]


def test_empty_folder_is_no_obstacle(tmp_path, source):
    """An empty folder may be the destination."""
    (tmp_path / "q").mkdir()
    quantize(source, tmp_path / "q")
    assert (tmp_path / "q/config.json").is_file()
    assert names(tmp_path) == ["m", "q"]


def test_full_folder_is_refused(tmp_path, source):
    """A folder that is not empty is refused, with both remedies, and not touched."""
    fill(tmp_path / "q")
    with pytest.raises(DestinationError, match=r"q: exists and is not empty.*-o.*--force"):
        quantize(source, tmp_path / "q")
    assert tree(tmp_path / "q") == {"notes.txt": b"precious"}
    assert names(tmp_path) == ["m", "q"]


def test_force_replaces(tmp_path, source):
    """With force the folder is replaced whole: nothing of the old one is left."""
    old_model(tmp_path / "q")
    quantize(source, tmp_path / "q", force=True)
    assert "notes.txt" not in tree(tmp_path / "q")
    quantize(source, tmp_path / "q2")
    assert tree(tmp_path / "q") == tree(tmp_path / "q2")
    assert names(tmp_path) == ["m", "q", "q2"]


def test_force_replaces_model_folders_only(tmp_path, source):
    """Force is no way to remove a home folder: what is no model folder stays."""
    fill(tmp_path / "q")
    with pytest.raises(DestinationError, match=r"q: is no model folder, and --force replaces only such"):
        quantize(source, tmp_path / "q", force=True)
    assert tree(tmp_path / "q") == {"notes.txt": b"precious"}
    assert names(tmp_path) == ["m", "q"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "where", ["m", "m/q", "m/a/b", ".", "m/../m", "link", "link/q"], ids=lambda where: f"destination {where}"
)
def test_source_is_never_touched(tmp_path, where, force):
    """A destination that is, holds or lies in the source is refused, through links too, force or not."""
    source = tiny_folder(tmp_path / "home/m")
    (tmp_path / "home/link").symlink_to(source)
    (tmp_path / "home/config.json").write_text("{}")  # so that force would replace it
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match="is, holds or lies in the source"):
        quantize(source, tmp_path / "home" / where, force=force)
    assert tree(tmp_path) == before
    assert names(tmp_path / "home") == ["config.json", "link", "m"]


@pytest.mark.parametrize("force", [False, True])
def test_relative_paths(tmp_path, monkeypatch, force):
    """Relative paths mean the same."""
    source = tiny_folder(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DestinationError, match="lies in the source"):
        quantize("m", "m/q", force=force)
    quantize("m", "q", force=force)
    assert names(tmp_path) == ["m", "q"]
    monkeypatch.chdir(source)
    with pytest.raises(DestinationError):
        quantize(".", ".", force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link"])
def test_what_is_no_folder_is_refused(tmp_path, source, kind, force):
    """A file or a link is refused, force or not, and stays."""
    place = tmp_path / "q"
    if kind == "file":
        place.write_text("precious")
    else:
        place.symlink_to(fill(tmp_path / "else") if "folder" in kind else tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(DestinationError, match="q: exists and is not a folder"):
        quantize(source, place, force=force)
    assert tree(tmp_path) == before
    assert place.is_symlink() == (kind != "file")


def test_parent_is_a_file(tmp_path, source):
    """A destination below a file cannot be written."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DestinationError, match="cannot be written"):
        quantize(source, tmp_path / "file/q")


def failing_write(monkeypatch, number, after):
    """Let `os.pwrite` fail from its `after`-th call on."""
    calls = []
    original = os.pwrite

    def pwrite(fd, data, offset):
        calls.append(len(data))
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return original(fd, data, offset)

    monkeypatch.setattr(files.os, "pwrite", pwrite)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no room left on the disk"),
        (errno.EDQUOT, "no room left on the disk"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
        (errno.EIO, "cannot be written"),
    ],
    ids=["ENOSPC", "EDQUOT", "EACCES", "EROFS", "EIO"],
)
def test_failed_write_says_why(tmp_path, source, monkeypatch, number, says):
    """A write that fails is a DestinationError with its file, the reason and the remedy."""
    failing_write(monkeypatch, number, 20)
    with pytest.raises(DestinationError, match=says) as error:
        quantize(source, tmp_path / "q")
    assert str(tmp_path) in str(error.value)
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("after", [0, 1, 60])
@pytest.mark.parametrize("threads", [1, 3])
def test_full_disk_leaves_nothing(tmp_path, source, monkeypatch, after, threads):
    """Whenever the disk gets full, early or late, nothing is left."""
    failing_write(monkeypatch, errno.ENOSPC, after)
    with pytest.raises(DestinationError, match="no room left on the disk"):
        quantize(source, tmp_path / "q", threads=threads)
    assert names(tmp_path) == ["m"]


def test_short_writes_are_continued(tmp_path, source, monkeypatch):
    """A write that takes only some of the bytes is continued."""
    quantize(source, tmp_path / "whole")
    original = os.pwrite
    monkeypatch.setattr(files.os, "pwrite", lambda fd, data, at: original(fd, data[: max(1, len(data) // 2)], at))
    quantize(source, tmp_path / "q")
    assert tree(tmp_path / "q") == tree(tmp_path / "whole")


def test_short_reads_are_continued(tmp_path, source, monkeypatch):
    """A read that gives only some of the bytes is continued."""
    quantize(source, tmp_path / "whole")
    original = os.preadv
    monkeypatch.setattr(
        files.os, "preadv", lambda fd, parts, at: original(fd, [parts[0][: len(parts[0]) // 2 + 1]], at)
    )
    quantize(source, tmp_path / "q")
    assert tree(tmp_path / "q") == tree(tmp_path / "whole")


def test_source_that_shrinks_is_a_source_error(tmp_path, source, monkeypatch):
    """A source that ends before its header says so, because it changed after it was checked, is named."""
    monkeypatch.setattr(files.os, "preadv", lambda *_: 0)
    with pytest.raises(SourceError, match=r"model-00001.*cut short while being read"):
        quantize(source, tmp_path / "q")
    assert names(tmp_path) == ["m"]


def test_failed_read_is_a_source_error(tmp_path, source, monkeypatch):
    """A read that fails is a SourceError with its file and byte."""

    def preadv(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "preadv", preadv)
    with pytest.raises(SourceError, match=r"model-00001.*reading failed at byte \d+ \(Input/output error\)"):
        quantize(source, tmp_path / "q")
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_read_only_parent(tmp_path, source, monkeypatch, number):
    """A parent that may not be written gives the remedy (simulated: root may write anywhere)."""
    original = Path.mkdir

    def mkdir(self, *args, **kwargs):
        if self.name.endswith(".partial"):
            raise OSError(number, os.strerror(number))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(DestinationError, match=r"may not be written.*choose a place you can write to with -o"):
        quantize(source, tmp_path / "q")
    assert names(tmp_path) == ["m"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_really_read_only_parent(tmp_path, source):
    """A parent without write permission gives the remedy."""
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o555)
    with pytest.raises(DestinationError, match="may not be written"):
        quantize(source, parent / "q")


@pytest.mark.parametrize("name", ["config.json", "README.md", "splitquant_report.json", "model.safetensors.index.json"])
def test_small_file_that_cannot_be_written(tmp_path, source, monkeypatch, name):
    """A small file that cannot be written leaves nothing, like a shard."""
    original = Path.open

    def open_(self, *args, **kwargs):
        if self.name == f"{name}.partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(DestinationError, match="no room left on the disk"):
        quantize(source, tmp_path / "q")
    assert names(tmp_path) == ["m"]


def test_carried_file_that_cannot_be_read_is_a_source_error(tmp_path, source, monkeypatch):
    """Where a file to be carried over cannot be read, the source is to blame, not the destination."""
    original = os.preadv

    def preadv(fd, parts, at):
        if Path(f"/proc/self/fd/{fd}").readlink().name == "tokenizer.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(fd, parts, at)

    monkeypatch.setattr(files.os, "preadv", preadv)
    with pytest.raises(SourceError, match=r"m/tokenizer\.json"):
        quantize(source, tmp_path / "q")
    assert names(tmp_path) == ["m"]


def test_disk_with_too_little_room_is_refused_before_any_work(tmp_path, source, monkeypatch):
    """The size of the output is known beforehand, and a disk that is too small is refused at once."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(shard, "transform_tensor", None)
    with pytest.raises(DestinationError, match=r"the output takes \d+ MB and .* has 0 MB free"):
        quantize(source, tmp_path / "a/b/q")
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("failure", ["nan", "disk full"])
def test_force_keeps_the_old_folder_when_the_new_run_fails(tmp_path, monkeypatch, failure):
    """With force the old folder is intact until the new one is complete."""
    tensors = {"a.weight": normal(1, 64, 64)}
    if failure == "nan":
        tensors["a.weight"][3] = 0x7FC0
    else:
        failing_write(monkeypatch, errno.ENOSPC, 2)
    source = write_folder(tmp_path / "m", tensors)
    old_model(tmp_path / "q")
    with pytest.raises((TensorError, DestinationError)):
        quantize(source, tmp_path / "q", force=True)
    assert tree(tmp_path / "q") == OLD
    assert names(tmp_path) == ["m", "q"]


def test_old_folder_comes_back_when_the_new_one_cannot_get_its_name(tmp_path, source, monkeypatch):
    """Where the last rename fails, the old folder gets its name back."""
    old_model(tmp_path / "q")
    original = Path.rename

    def rename(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(workplace, "exchange", lambda *_: False)
    with pytest.raises(DestinationError):
        quantize(source, tmp_path / "q", force=True)
    assert tree(tmp_path / "q") == OLD
    assert names(tmp_path) == ["m", "q"]


def test_leftovers_of_an_earlier_replacement_are_no_obstacle(tmp_path, source):
    """A folder that was set aside when the machine went down does not stop the next run."""
    old_model(tmp_path / "q")
    fill(tmp_path / ".q.replaced-1")
    quantize(source, tmp_path / "q", force=True)
    assert names(tmp_path) == [".q.replaced-1", "m", "q"]


def test_two_runs_at_once(tmp_path, source):
    """A second run to the same place is refused while the first goes on, and does it no harm."""
    told = []

    def advance(_):
        if not told:
            told.append(True)
            with pytest.raises(DestinationError, match="another run is writing it at this moment"):
                quantize(source, tmp_path / "q")
            told.append("refused")

    quantize(source, tmp_path / "q", advance=advance, threads=1)
    assert told == [True, "refused"]
    quantize(source, tmp_path / "q2")
    assert tree(tmp_path / "q") == tree(tmp_path / "q2")


def test_descriptors_are_closed(tmp_path, source, monkeypatch):
    """Neither a good run nor a failed one leaves a file open."""
    quantize(source, tmp_path / "q0")
    before = open_descriptors()
    quantize(source, tmp_path / "q")
    dequantize(tmp_path / "q", tmp_path / "f")
    failing_write(monkeypatch, errno.ENOSPC, 3)
    with pytest.raises(DestinationError):
        quantize(source, tmp_path / "q2")
    assert open_descriptors() == before


def test_target_that_cannot_be_sized_is_closed(tmp_path, monkeypatch):
    """A file that opens and cannot get its size is a DestinationError, and closed."""

    def reserve(*_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(files, "_reserve", reserve)
    before = open_descriptors()
    with pytest.raises(DestinationError, match="cannot be written"):
        files.TargetFile(tmp_path / "x", 10)
    assert open_descriptors() == before


def test_modes_are_those_of_ordinary_files(tmp_path, source):
    """Files and folders get the permissions that the umask leaves."""
    old = os.umask(0o027)
    try:
        quantize(source, tmp_path / "q")
    finally:
        os.umask(old)
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "q").iterdir() if path.is_file()}
    assert modes == {"0o640"}
    assert (tmp_path / "q").stat().st_mode & 0o777 == 0o750
