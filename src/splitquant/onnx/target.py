"""The output file and its external data: complete or not there, the graph last."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from onnx import ModelProto

from splitquant.checkpoint.files import TargetFile, destination_error
from splitquant.errors import DestinationError
from splitquant.onnx.wire import LARGEST_FILE


class Target:
    """Where a model and its external data grow, under temporary names beside the places they will have."""

    def __init__(self, path: Path, sources: tuple[Path, ...], *, force: bool) -> None:
        self.path = path
        self.data_path = path.with_name(f"{path.name}.data")
        # Names that nobody can foresee: no link lies in wait there, and no other run writes there.
        run = secrets.token_hex(8)
        self.growing = path.with_name(f".{path.name}.{run}.partial")
        self.growing_data = path.with_name(f".{path.name}.data.{run}.partial")
        self._check(sources, force=force)

    @property
    def location(self) -> str:
        """What the graph calls its external data."""
        return self.data_path.name

    def publish(self, model: ModelProto, *, with_data: bool) -> None:
        """Write the graph, then give both files their names; a reader never sees a graph without its data."""
        try:
            data = model.SerializeToString()
        except Exception as error:  # protobuf has no own class for a message that is too large
            raise DestinationError(f"{self.path}: the graph cannot be written ({error})") from error
        if len(data) >= LARGEST_FILE:
            raise DestinationError(
                f"{self.path}: the graph takes {len(data)} bytes without its large weights; an ONNX file ends below {LARGEST_FILE}"
            )
        with TargetFile(self.growing, len(data)) as file:
            file.write(data, 0)
        try:
            with _turn_in(self.path.absolute().parent):
                with suppress(FileNotFoundError):
                    self.path.unlink()
                if with_data:
                    self.growing_data.replace(self.data_path)
                else:
                    with suppress(FileNotFoundError):
                        self.data_path.unlink()
                self.growing.replace(self.path)
        except OSError as error:
            raise destination_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in (self.growing, self.growing_data):
            with suppress(OSError):
                path.unlink()

    def _check(self, sources: tuple[Path, ...], *, force: bool) -> None:
        parent = self.path.absolute().parent
        if not parent.is_dir():
            raise DestinationError(f"{self.path}: the folder {parent} is not there; make it first")
        for path in (self.path, self.data_path):
            for source in sources:
                if path.exists() and path.samefile(source):
                    raise DestinationError(f"{path}: is a file of the source; choose another place with -o")
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise DestinationError(f"{path}: exists and is no ordinary file; choose another place with -o")
            if path.exists() and not force:
                raise DestinationError(f"{path}: exists; choose another place with -o, or replace it with --force")


@contextmanager
def _turn_in(folder: Path) -> Iterator[None]:
    """One run at a time gives names in a folder: a graph never comes with the data of another run."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
