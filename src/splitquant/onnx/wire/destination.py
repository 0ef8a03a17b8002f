"""The output file and its external data: complete or not there, the graph last."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from splitquant.errors import DestinationError, SourceError
from splitquant.onnx.wire.source import locations_of
from splitquant.storage.files import destination_error
from splitquant.storage.publish import sync, try_lock, turn_in
from splitquant.storage.workplace import check_room

_KEY = "[0-9a-f]{16}"


class Destination:
    """Where a model and its external data grow, under temporary names beside the places they will have.

    The temporary model file is locked as long as its run lives, so that the next run can remove what a killed one left.
    """

    def __init__(self, path: Path, sources: tuple[Path, ...], *, force: bool, durable: bool = True) -> None:
        self.path = path
        self.data_path = data_path_of(path)
        # Names that nobody can foresee: no link lies in wait there, and no other run writes there.
        self._run = secrets.token_hex(8)
        self.growing = path.with_name(f".{path.name}.{self._run}.partial")
        self.growing_data = path.with_name(f".{path.name}.data.{self._run}.partial")
        self._lock = -1
        self._sources = sources
        self._with_data = False
        self._force = force
        self._durable = durable
        self._check(path, force=force)

    @property
    def location(self) -> str:
        """What the graph calls its external data."""
        return self.data_path.name

    def prepare(self, nbytes: int, *, with_data: bool) -> None:
        """Refuse a full disk, and external data in the place of a file that is not of the model to be replaced."""
        self._with_data = with_data
        check_room(self.path, nbytes)
        if not with_data:
            return
        self._check(self.data_path, force=True)
        with turn_in(self.path.absolute().parent):
            unrelated = self.data_path.exists() and not self._replaces_data()
        if unrelated:
            raise DestinationError(
                f"{self.data_path}: exists, and is no part of a model at {self.path}; move it away, or choose another place "
                "with -o"
            )

    def publish(self) -> None:
        """Give the complete files their names; a reader never sees a graph without its data."""
        parent = self.path.absolute().parent
        try:
            if self._durable:
                for file in (self.growing, self.growing_data)[: 1 + self._with_data]:
                    sync(file)
            with turn_in(parent):
                self._give_names()
                if self._durable:
                    sync(parent)
        except OSError as error:
            raise destination_error(self.path, error) from error

    def _give_names(self) -> None:
        if self._with_data:
            with self._set_aside(self.path, self.data_path):
                self.growing_data.replace(self.data_path)
                self.growing.replace(self.path)
            return
        replaced = self._replaces_data()
        self.growing.replace(self.path)
        if replaced:
            self.data_path.unlink()

    def __enter__(self) -> Self:
        parent = self.path.absolute().parent
        try:
            with turn_in(parent):
                self._remove_leftovers(parent)
                self._check(self.path, force=self._force)  # a model that was put back is there again
                self._lock = os.open(self.growing, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                try_lock(self._lock)
        except DestinationError:
            raise
        except OSError as error:
            raise destination_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in (self.growing, self.growing_data):  # in this order: see _remove_leftovers
            with suppress(OSError):
                path.unlink()
        if self._lock >= 0:
            os.close(self._lock)

    def _check(self, path: Path, *, force: bool) -> None:
        parent = path.absolute().parent
        if not parent.is_dir():
            raise DestinationError(f"{path}: the folder {parent} is not there; make it first")
        try:
            found = path.lstat()  # once: another run may replace it at any moment
        except FileNotFoundError:
            return
        except OSError as error:
            raise destination_error(path, error) from error
        if any(os.path.samestat(found, source.stat()) for source in self._sources):
            raise DestinationError(f"{path}: is a file of the source; choose another place with -o")
        if not stat.S_ISREG(found.st_mode):
            raise DestinationError(f"{path}: exists and is no ordinary file; choose another place with -o")
        if not force:
            raise DestinationError(f"{path}: exists; choose another place with -o, or replace it with --force")

    @contextmanager
    def _set_aside(self, *paths: Path) -> Iterator[None]:
        """Files out of the way: back in their places if what is done in between fails, else gone."""
        held = [(path, path.with_name(f".{path.name}.{self._run}.old")) for path in paths if path.exists()]
        try:
            for path, aside in held:
                path.replace(aside)
            yield
        except OSError:
            for path, aside in held:
                with suppress(FileNotFoundError):
                    aside.replace(path)
            raise
        for _, aside in held:
            aside.unlink()

    def _replaces_data(self) -> bool:
        """Whether the model that is replaced keeps its weights where the external data would be."""
        return self.path.is_file() and self.data_path.is_file() and self._refers_to_data(self.path)

    def _remove_leftovers(self, parent: Path) -> None:
        """Remove what killed runs left for the same destination: files that no living run has locked."""
        name = re.compile(rf"\.{re.escape(self.path.name)}(\.data)?\.({_KEY})\.partial")
        for path in parent.iterdir():
            match = name.fullmatch(path.name)
            if match is None:
                continue
            model = parent / f".{self.path.name}.{match[2]}.partial"
            data = parent / f".{self.path.name}.data.{match[2]}.partial"
            # The model file, which has the lock, is made before the data and removed before it.
            if (path == data and model.exists()) or (path == model and not _is_dead(model)):
                continue
            if path == model and not self.path.exists() and not data.exists() and self._refers_to_data(model):
                data = self.data_path  # the run was killed between giving the one file its name and the other
            for left in (model, data):
                with suppress(OSError):
                    left.unlink()

        self._put_back(parent)

    def _put_back(self, parent: Path) -> None:
        """Undo what a killed run set aside, unless it had come to the end. Live runs set nothing aside while this is their turn."""
        name = re.compile(rf"\.({re.escape(self.path.name)}(\.data)?)\.{_KEY}\.old")
        done = self.path.exists()
        for path in parent.iterdir():
            match = name.fullmatch(path.name)
            if match is not None:
                with suppress(OSError):
                    path.unlink() if done else path.replace(parent / match[1])

    def _refers_to_data(self, path: Path) -> bool:
        with suppress(SourceError):
            return self.location in locations_of(path)
        return False


def data_path_of(path: Path) -> Path:
    """Where the external data of a model goes that is written to `path`; DestinationError where that is no file name."""
    if not path.name:
        raise DestinationError(f"{path}: is a folder; give the name of a file with -o")
    return path.with_name(f"{path.name}.data")


def _is_dead(path: Path) -> bool:
    """Whether no run holds the lock of a file."""
    with suppress(OSError):
        held = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return try_lock(held)
        finally:
            os.close(held)
    return False
