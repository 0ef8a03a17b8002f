"""The weights of a float folder as rows of matrices, the form in which quantized ones are compared with them."""

from __future__ import annotations

import numpy as np

from splitquant.checkpoint.folder import Folder
from splitquant.core.arrays import Matrix
from splitquant.core.rows import to_matrix
from splitquant.format.decode import as_window
from splitquant.format.planes import Geometry
from splitquant.storage.files import SourceFile


class SourceRows:
    """The rows of a matrix of the source: read as they are asked for, or where they are its columns, all at once."""

    def __init__(self, folder: Folder, name: str, g: Geometry, index: int) -> None:
        self._entry, self._geometry = folder.tensors[name], g
        self._file = folder.path / folder.shard_of[name]
        self._start = self._entry.start + index * (self._entry.nbytes // g.count)
        self._row_bytes = self._entry.nbytes // (g.count * g.rows)
        whole = None if g.axis == 0 else self._read(0, g.rows)
        self._matrix = None if whole is None else whole.reshape(g.matrix_shape)

    def rows(self, first: int, last: int) -> Matrix:
        """Rows `[first, last)`."""
        if self._matrix is None:
            return self._read(first, last).reshape(last - first, self._geometry.cols)
        taken = np.take(self._matrix, range(first, last), axis=self._geometry.axis)
        return to_matrix(taken, self._geometry.axis)

    def _read(self, first: int, last: int) -> Matrix:
        raw = np.empty((last - first) * self._row_bytes, np.uint8)
        with SourceFile(self._file) as file:
            file.read_into(raw, self._start + first * self._row_bytes)
        return as_window(raw, self._entry.dtype, 1, (last - first) * self._geometry.cols)
