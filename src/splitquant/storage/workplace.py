"""The hidden folder beside the destination in which the output grows, so that it appears complete or not at all.

A killed run leaves the workplace behind; the next run with the same plan over the same source takes up its finished shards,
any other run starts clean. A run that fails removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from splitquant.errors import DestinationError
from splitquant.storage.files import SourceFile, TargetFile, destination_error

COPY_BYTES = 8 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_STATE = ".splitquant"  # inside the workplace; removed before the folder is given its name


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
    if not destination.exists() or not any(destination.iterdir()):
        return
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

    fingerprint: whatever decides the output's bytes; finished shards are taken up only where it is the same.
    """

    def __init__(self, destination: Path, fingerprint: str) -> None:
        self.destination = destination
        self.path = destination.absolute().parent / f".{destination.absolute().name}.partial"
        self._fingerprint = fingerprint
        self._lock = -1
        self._published = False

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise destination_error(self.path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._lock).st_ino != self.path.stat().st_ino:  # removed, and made anew, since it was opened
                raise BlockingIOError
        except OSError as error:
            os.close(self._lock)
            raise DestinationError(
                f"{self.destination}: another run is writing it at this moment; wait for it, or choose another place with -o"
            ) from error
        state = self.path / _STATE
        if not state.is_dir() and any(self.path.iterdir()):
            os.close(self._lock)
            raise DestinationError(
                f"{self.path}: is needed to write {self.destination}, and holds files that are not from here; move them away, "
                "or choose another place with -o"
            )
        try:
            same = _read_text(state / "fingerprint") == self._fingerprint
            self._clear(keep={_STATE, *self._finished_shards()} if same else set())
            if not same:
                state.mkdir()
                self.write_text(f"{_STATE}/fingerprint", self._fingerprint)
        except OSError as error:
            self._abandon()
            os.close(self._lock)
            raise error if isinstance(error, DestinationError) else destination_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published and kind is not None and issubclass(kind, Exception):
            self._abandon()  # KeyboardInterrupt is no Exception: an interrupted run can be taken up
        with suppress(OSError):
            os.close(self._lock)

    def finished(self, shard: str) -> Any | None:
        """What `finish` stored for a shard that is complete, else None."""
        try:
            state = json.loads(_read_text(self.path / _STATE / f"{shard}.json") or "")
            whole = (self.path / shard).stat().st_size == state["nbytes"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return state["result"] if whole else None

    def growing(self, shard: str) -> Path:
        """Where a shard is written until it is complete."""
        return self.path / f"{shard}.partial"

    def finish(self, shard: str, result: Any) -> None:
        """Give a complete shard its name and remember its result."""
        try:
            nbytes = self.growing(shard).stat().st_size
            self.growing(shard).replace(self.path / shard)
        except OSError as error:
            raise destination_error(self.path / shard, error) from error
        self.write_text(f"{_STATE}/{shard}.json", json.dumps({"nbytes": nbytes, "result": result}))

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

    def publish(self) -> None:
        """Give the complete folder its name; what had that name before is removed only then."""
        destination = self.destination.absolute()
        aside = destination.parent / f".{destination.name}.replaced-{os.getpid()}"
        try:
            shutil.rmtree(self.path / _STATE)
            if destination.exists():
                destination.rename(aside)
            try:
                self.path.rename(destination)
            except OSError:
                if aside.exists():
                    aside.rename(destination)
                raise
        except OSError as error:
            raise destination_error(destination, error) from error
        self._published = True
        shutil.rmtree(aside, ignore_errors=True)

    def _abandon(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _finished_shards(self) -> set[str]:
        names = {file.name.removesuffix(".json") for file in (self.path / _STATE).glob("*.json")}
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
    except OSError:
        return None
