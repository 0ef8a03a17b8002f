"""The hidden folder beside the destination in which the output grows, so that it appears complete or not at all.

A killed run leaves the workplace behind; the next run with the same plan over the same source takes up its finished shards,
any other run starts clean. A run that fails removes it. Nobody else can write there, and what somebody else made is not used.

Names are given in this order, so that a run may be killed anywhere: the workplace, with its state in it, gets the name of the
output (what had that name is exchanged for it, then put aside and removed), and the state is removed last. A run that finds
an output with a state in it does what was left to do.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from splitquant.errors import DestinationError, SourceError
from splitquant.storage.files import SourceFile, TargetFile, destination_error, narrow_permissions
from splitquant.storage.publish import exchange, sync, sync_tree, try_lock, turn_in

COPY_BYTES = 8 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 4096
STATE = ".splitquant"  # inside the workplace; removed after the folder was given its name


def fingerprint_of(path: Path) -> str:
    """What tells a file from others, on whatever machine: its size, the time of its last change, samples of its bytes.

    Raises:
        SourceError: where it cannot be read.
    """
    with SourceFile(path) as file:
        nbytes, changed = file.nbytes, path.stat().st_mtime_ns
        starts = sorted({max(0, nbytes - _SAMPLE_BYTES) * i // (_SAMPLES - 1) for i in range(_SAMPLES)})
        crc = 0
        for start in starts:
            piece = np.empty(min(_SAMPLE_BYTES, nbytes), np.uint8)
            file.read_into(piece, start)
            crc = zlib.crc32(piece.data, crc)
    return f"{nbytes} {changed} {crc:08x}"


def check_destination(source: Path, destination: Path, *, force: bool) -> None:
    """Refuse a destination that exists (without `force`), or that is, holds or lies in the source."""
    src, dst = source.resolve(), destination.resolve()
    if dst == Path.cwd():
        raise DestinationError(f"{destination}: is the folder you are in; choose another one with -o")
    if dst == src or src in dst.parents or dst in src.parents:
        raise DestinationError(
            f"{destination}: is, holds or lies in the source {source}; choose a folder beside it with -o"
        )
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise DestinationError(f"{destination}: exists and is not a folder; choose another place with -o")
    if (destination / STATE).is_dir():
        return  # a run was killed when its output had just got its name: see Workplace
    refuse_existing(destination, force=force)


def refuse_existing(destination: Path, *, force: bool) -> None:
    """Refuse a folder that is not empty (without `force`), or is no model."""
    try:
        if not any(destination.iterdir()):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise destination_error(destination, error) from error
    if not force:
        raise DestinationError(
            f"{destination}: exists and is not empty; choose another place with -o, or replace it with --force"
        )
    if not (destination / "config.json").is_file() and not any(destination.glob("*.safetensors")):
        raise DestinationError(
            f"{destination}: is no model folder, and --force replaces only such; remove it yourself, or choose another place"
        )


def check_room(destination: Path, nbytes: int) -> None:
    """Refuse before any work when the disk has less room than the output takes."""
    parent = _existing_parent(destination)
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise DestinationError(
            f"{destination}: the output takes {nbytes / 1e6:.0f} MB and {parent} has {free / 1e6:.0f} MB free; "
            "free some, or write to another place with -o"
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())


class Workplace:
    """Where one output folder grows; a context manager that takes up, cleans or publishes it.

    Args:
        destination: what will be written.
        fingerprint: whatever decides the output's bytes; finished shards are taken up only where it is the same.
        force: whether a model that is there is replaced.
        durable: whether all bytes are on the disk before the output gets its name.
    """

    def __init__(self, destination: Path, fingerprint: str, *, force: bool = False, durable: bool = True) -> None:
        self.destination = destination
        final = destination.absolute()
        self.path = final.with_name(f".{final.name}.partial")
        self._final, self._aside = final, final.with_name(f".{final.name}.replaced")
        self._fingerprint = fingerprint
        self._force, self._durable = force, durable
        self._lock = -1
        self._published = False

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with turn_in(self.path.parent):
                self._do_what_was_left()
                refuse_existing(self.destination, force=self._force)
                with suppress(FileExistsError):
                    self.path.mkdir(0o700)
                self._refuse_foreign()
                self._take_lock()
        except OSError as error:
            self._unlock()
            raise error if isinstance(error, DestinationError) else destination_error(self.path, error) from error
        try:
            same = self._is_mine(self.path)
            self._clear(keep={STATE, *self._finished_shards()} if same else set())
            if not same:
                (self.path / STATE).mkdir()
                self.write_text(f"{STATE}/fingerprint", self._fingerprint)
        except OSError as error:
            self._abandon()
            self._unlock()
            raise error if isinstance(error, DestinationError) else destination_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published and kind is not None and issubclass(kind, Exception):
            self._abandon()  # KeyboardInterrupt is no Exception: an interrupted run can be taken up
        self._unlock()

    def finished(self, shard: str, is_whole: Callable[[Path, Any], bool] = lambda *_: True) -> Any | None:
        """What `finish` stored for a shard that is complete, else None.

        is_whole: told the file and what was stored; whether its bytes are those that were written.
        """
        path = self.path / shard
        try:
            state = json.loads(_read_text(self.path / STATE / f"{shard}.json") or "")
            whole = path.stat().st_size == state["nbytes"] and is_whole(path, state["result"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return state["result"] if whole else None

    def growing(self, shard: str) -> Path:
        """Where a shard is written until it is complete."""
        return self.path / f"{shard}.partial"

    def finish(self, shard: str, result: Any, like: Path) -> None:
        """Give a complete shard its name, the permissions of the file `like`, and remember its result."""
        try:
            nbytes = self.growing(shard).stat().st_size
            narrow_permissions(self.growing(shard), like)
            self.growing(shard).replace(self.path / shard)
        except OSError as error:
            raise destination_error(self.path / shard, error) from error
        self.write_text(f"{STATE}/{shard}.json", json.dumps({"nbytes": nbytes, "result": result}))

    def write_text(self, name: str, text: str | Iterable[str]) -> None:
        """Write a small file, whole or in pieces, complete or not at all."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.partial")
            with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.writelines([text] if isinstance(text, str) else text)
            temporary.replace(path)
        except OSError as error:
            raise destination_error(path, error) from error

    def copy_in(self, source: Path, names: Sequence[str], new_name: str | None = None) -> None:
        """Carry files over from the source folder, by their paths below it; a single one may get another name."""
        for name in names:
            target = self.path / (new_name or name)
            if target == self.path / STATE:
                raise SourceError(
                    f"{source / name}: has a name that is kept for unfinished outputs; rename it or move it away"
                )
            with SourceFile(source / name) as reading:
                nbytes = reading.nbytes
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise destination_error(target, error) from error
                with TargetFile(target, nbytes) as writing:
                    for at in range(0, nbytes, COPY_BYTES):
                        piece = np.empty(min(COPY_BYTES, nbytes - at), np.uint8)
                        reading.read_into(piece, at)
                        writing.write(piece, at)
                narrow_permissions(target, source / name)

    def publish(self) -> None:
        """Give the complete folder its name; what had that name before is removed only then."""
        try:
            self.path.chmod(stat.S_IMODE((self.path / STATE).stat().st_mode))  # what is usual for this user
            if self._durable:
                sync_tree(self.path)
            with turn_in(self.path.parent):
                if self._final.exists():
                    self._replace()
                else:
                    self.path.rename(self._final)
                self._published = True
                if self._durable:
                    sync(self._final.parent)
                shutil.rmtree(self._aside, ignore_errors=True)
                shutil.rmtree(self._final / STATE)
        except OSError as error:
            raise destination_error(self._final, error) from error

    def _replace(self) -> None:
        if exchange(self.path, self._final):
            with suppress(OSError):
                self.path.rename(self._aside)
            return
        self._final.rename(self._aside)
        try:
            self.path.rename(self._final)
        except OSError:
            self._aside.rename(self._final)
            raise

    def _do_what_was_left(self) -> None:
        """What a run that was killed in `publish` had still to do; in the turn of this one."""
        final, aside = self._final, self._aside
        if _is_own_folder(final / STATE):  # its name was given
            if _is_own_folder(self.path) and not (self.path / STATE).is_dir():  # exchanged, and not yet put aside
                shutil.rmtree(self.path)
            shutil.rmtree(aside, ignore_errors=True)
            if self._is_mine(final) and not self.path.exists():
                final.rename(self.path)  # to be taken up, which is quick
            else:
                shutil.rmtree(final / STATE)
        elif _is_own_folder(aside):
            shutil.rmtree(aside) if final.exists() else aside.rename(final)

    def _refuse_foreign(self) -> None:
        found = self.path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        whose = ""
        if not stat.S_ISDIR(found.st_mode):
            whose = "is no folder"
        elif found.st_uid != os.geteuid():
            whose = f"belongs to user {found.st_uid}"
        elif mode & 0o022:
            whose = f"can be written by others (mode {mode:o})"
        elif not (self.path / STATE).is_dir() and any(self.path.iterdir()):
            whose = "holds files that are not from here"
        if whose:
            raise DestinationError(
                f"{self.path}: is needed to write {self.destination}, and {whose}; move it away, or choose another place with -o"
            )

    def _take_lock(self) -> None:
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if not try_lock(self._lock):
            raise DestinationError(
                f"{self.destination}: another run is writing it at this moment; wait for it, or choose another place with -o"
            )

    def _is_mine(self, folder: Path) -> bool:
        """Whether the state in a folder is that of a run with the same fingerprint."""
        return _read_text(folder / STATE / "fingerprint") == self._fingerprint

    def _unlock(self) -> None:
        if self._lock >= 0:
            with suppress(OSError):
                os.close(self._lock)

    def _abandon(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _finished_shards(self) -> set[str]:
        names = {file.name.removesuffix(".json") for file in (self.path / STATE).glob("*.json")}
        return {name for name in names if self.finished(name) is not None}

    def _clear(self, keep: set[str]) -> None:
        for child in self.path.iterdir():
            if child.name in keep:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
