"""External data of a model: found only where it may be, inside the model's own folder.

Paths inside a model file are hostile until shown otherwise: a relative path that stays below the folder, no symbolic
link on the way, an ordinary file, and a span that lies inside it.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from onnx import TensorProto

from splitquant.errors import SourceError
from splitquant.onnx.dtypes import name_of
from splitquant.onnx.wire.stored import StoredTensor, check_header
from splitquant.storage.files import SourceFile

_REMEDY = "save the model again with its external data beside it"


class ExternalFiles:
    """The open external data files of one model, by their path below its folder."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._open: dict[Path, SourceFile] = {}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that were opened."""
        return tuple(self._open)

    def tensor(self, proto: TensorProto, where: str) -> StoredTensor:
        """A tensor in external data; SourceError for a path or a span that is not allowed."""
        if proto.HasField("raw_data"):
            raise SourceError(f"{where} has both raw_data and external data; {_REMEDY}")
        expected = check_header(proto, where)
        if proto.data_type == TensorProto.STRING:
            raise SourceError(f"{where} is a text tensor in external data, which ONNX does not allow; {_REMEDY}")
        entries = {entry.key: entry.value for entry in proto.external_data}
        file = self._file(entries.get("location", ""), where)
        offset = _natural(entries.get("offset", "0"), "offset", where)
        nbytes = _natural(entries.get("length", str(expected)), "length", where)
        if nbytes != expected:
            raise SourceError(
                f"{where} has {nbytes} bytes of external data; {name_of(proto.data_type)} of shape {list(proto.dims)} "
                f"takes {expected}: {_REMEDY}"
            )
        if offset + nbytes > file.nbytes:
            raise SourceError(
                f"{where} ends at byte {offset + nbytes} of {file.path}, which has {file.nbytes} bytes; {_REMEDY}"
            )
        return StoredTensor(proto.name, proto.data_type, tuple(proto.dims), nbytes, None, file, offset)

    def at(self, path: Path) -> SourceFile:
        """A file that is known to be allowed, such as the model itself."""
        if path not in self._open:
            self._open[path] = SourceFile(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()

    def _file(self, location: str, where: str) -> SourceFile:
        relative = PurePosixPath(location if isinstance(location, str) else "")  # bytes are text that is not UTF-8
        if not relative.parts or "\0" in location or "\\" in location:
            raise SourceError(f"{where} has external data at {location!r}, which is no path; {_REMEDY}")
        parts = _without_ups(relative)
        if parts is None:
            raise SourceError(
                f"{where} has external data at {location!r}, which leaves the folder of {self._model}; {_REMEDY}"
            )
        path = self._model.parent
        for part in parts:
            path /= part
            try:
                mode = path.lstat().st_mode
            except OSError as error:
                raise SourceError(
                    f"{where}: its external data {path} is missing ({error.strerror}); {_REMEDY}"
                ) from error
            if stat.S_ISLNK(mode):
                raise SourceError(f"{where}: its external data goes through the symbolic link {path}; {_REMEDY}")
        if not stat.S_ISREG(mode):
            raise SourceError(f"{where}: its external data {path} is no ordinary file; {_REMEDY}")
        return self.at(path)


def _without_ups(relative: PurePosixPath) -> list[str] | None:
    """The parts of a path below a folder, each `..` taken back with what is before it; None where it leaves the folder.

    By its text alone: where `sub` is a link, `sub/../w.bin` is still beside the model and nowhere else.
    """
    parts: list[str] = []
    for part in relative.parts:
        if part != "..":
            parts.append(part)
        elif not parts:
            return None
        else:
            parts.pop()
    return None if relative.is_absolute() or not parts else parts


def _natural(text: str, what: str, where: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise SourceError(f"{where} has the external data {what} {text!r}; expected a number: {_REMEDY}")
    return int(text)
