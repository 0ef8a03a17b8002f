"""The passes over a matrix: however it is cut, shared and encoded, what comes out is the same."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from splitquant.core.error import figures_of
from splitquant.core.passes import Sink, Windows, count_passes, encoded, held, quantized, scale_rows, scaled, solved
from splitquant.core.rows import RowScales
from splitquant.core.scaling import Scaling
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import TensorError

ROWS, COLS = 20, 50
SPECS = [
    PAPER,
    QuantSpec(),
    QuantSpec(3, 5, granularity="group:16"),
    QuantSpec(4, 1, symmetric=True),
    QuantSpec(2, 3, "residual", "tensor"),
    QuantSpec(3, 2, "lloyd"),
    QuantSpec(4, 2, "magnitude", "group:8"),
    QuantSpec(3, 1, granularity="group:16"),
]


def weights(seed=4):
    """Rows of many magnitudes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((ROWS, COLS)) * np.exp(rng.standard_normal((ROWS, 1)))).astype(np.float32)


class Cut:
    """A matrix in windows of so many rows, with a note of every load and of every window that a pass is done with."""

    def __init__(self, x, rows, shared=map):
        self.loads, self.passed = [], []
        windows = [range(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]
        self.matrix = Windows(windows, lambda rows: self.load(x, rows), shared, self.passed.append)

    def load(self, x, rows):
        """A copy of the rows, which nobody else has."""
        self.loads.append(rows)
        return x[rows.start : rows.stop].copy()


def collect(_, blocks):
    """A sink that keeps all."""
    return list(blocks)


def joined(windows):
    """Codes, cluster ids, row_scales and figures of all blocks."""
    blocks = [block for window in windows for block in window]
    assert [row for block in blocks for row in block.rows] == list(range(ROWS))
    codes = np.concatenate([block.planes.codes for block in blocks])
    ids = None if blocks[0].planes.clusters is None else np.concatenate([block.planes.clusters for block in blocks])
    scale = None if blocks[0].scales is None else np.concatenate([block.scales.scale for block in blocks])
    return codes, ids, scale, figures_of(ROWS * COLS, [block.errors for block in blocks])


def check(windows, grid, whole):
    """All bytes and figures are those of the array in one piece."""
    codes, ids, scale, figures = joined(windows)
    assert codes.tobytes() == whole.codes.tobytes()
    assert (ids is None) == (whole.clusters is None)
    assert ids is None or ids.tobytes() == whole.clusters.tobytes()
    assert (scale is None) == (whole.row_scale is None)
    assert scale is None or scale.tobytes() == whole.row_scale.tobytes()
    assert grid.levels.tobytes() == whole.levels.tobytes()
    assert figures == whole.figures


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("rows", "block"), [(7, 0), (7, 2), (ROWS, 0), (ROWS, 3), (1, 5)])
def test_windows_and_blocks_do_not_matter(spec, rows, block):
    """LAW: planes, levels, row_scales and figures are those of the whole array."""
    cut = Cut(weights(), rows)
    grid, windows = quantized(cut.matrix, spec, Sink(collect, block=block))
    check(windows, grid, quantize_array(weights(), spec))
    assert len(windows) == len(cut.matrix.ranges)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_threads_do_not_matter(spec):
    """LAW: nor does it matter who works on which window."""
    with ThreadPoolExecutor(3) as pool:
        grid, windows = quantized(Cut(weights(), 3, pool.map).matrix, spec, Sink(collect))
    check(windows, grid, quantize_array(weights(), spec))


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        (QuantSpec(), 3),
        (PAPER, 2),
        (QuantSpec(4, 1, zero_points="shared"), 2),
        (QuantSpec(4, 1), 1),
        (QuantSpec(4, 1, symmetric=True), 1),
    ],
    ids=str,
)
def test_windows_are_loaded_once_per_pass(spec, passes):
    """To weigh the rows, to count their values, to encode them, where each is needed; and every pass is told of."""
    cut = Cut(weights(), 8)
    quantized(cut.matrix, spec, Sink(collect))
    assert count_passes(cut.matrix, spec) == passes
    assert cut.loads == cut.passed == list(cut.matrix.ranges) * passes


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_window_is_loaded_once(spec):
    """What is in memory anyway is held."""
    cut = Cut(weights(), ROWS)
    quantized(cut.matrix, spec, Sink(collect))
    assert cut.loads == [range(ROWS)]
    assert len(cut.passed) == count_passes(cut.matrix, spec) <= 2


def test_row_scales_of_all_rows():
    """Known ones are kept, and need no pass to weigh by."""
    spec = QuantSpec(granularity="group:16")
    cut = Cut(weights(), 8)
    matrix = scaled(cut.matrix, Scaling.of(spec))
    assert matrix.scales.scale.tobytes() == scale_rows(weights(), Scaling.of(spec)).scale.tobytes()
    assert len(cut.loads) == 3
    (grid,) = solved(matrix, [spec])
    assert len(cut.loads) == 6
    check(encoded(matrix, spec, grid, Sink(collect)), grid, quantize_array(weights(), spec))
    assert scaled(matrix, Scaling.of(spec)) is matrix


def test_no_row_scales_take_no_pass():
    """A tensor that is scaled as a whole has none."""
    cut = Cut(weights(), 8)
    assert scaled(cut.matrix, Scaling.of(PAPER)) is cut.matrix
    assert cut.loads == []


def test_row_scales_may_be_raised_before_encoding():
    """Whoever keeps them may change them: rows are encoded by those of the matrix."""
    spec, x = QuantSpec(), weights()
    matrix = scaled(Cut(x, 8).matrix, Scaling.of(spec))
    (grid,) = solved(matrix, [spec])
    raised = replace(matrix, scales=RowScales(COLS, np.maximum(matrix.scales.scale, np.float32(1.0))))
    codes, _, scale, figures = joined(encoded(raised, spec, grid, Sink(collect)))
    low = matrix.scales.scale[:, 0] < 1
    assert low.any()
    assert (scale[low] == 1).all()
    before = joined(encoded(matrix, spec, grid, Sink(collect)))
    assert (codes[~low] == before[0][~low]).all()
    assert figures.noise > before[3].noise


def test_several_specs_share_the_passes():
    """Grids are those of each spec alone, of one histogram and one weighing for all."""
    specs = [spec for spec in SPECS if spec.granularity.kind == "channel"]
    cut = Cut(weights(), 8)
    for spec, grid in zip(specs, solved(cut.matrix, specs), strict=True):
        assert grid.levels.tobytes() == quantize_array(weights(), spec).levels.tobytes()
    assert len(cut.loads) == 2 * 3


def test_scratch_memory_is_the_callers():
    """Planes lie where the sink says; they are valid until the next block."""
    room = {"codes": np.empty(1000, np.uint8), "clusters": np.empty(1000, np.uint8)}
    sink = Sink(lambda _, blocks: [bytes(block.planes.codes) for block in blocks], lambda name, n: room[name][:n], 6)
    matrix = held(Windows.whole(weights()), Scaling.of(QuantSpec()))
    (grid,) = solved(matrix, [QuantSpec()])
    (found,) = encoded(matrix, QuantSpec(), grid, sink)
    assert b"".join(found) == quantize_array(weights(), QuantSpec()).codes.tobytes()


@pytest.mark.parametrize("spec", [PAPER, QuantSpec()], ids=str)
@pytest.mark.parametrize("rows", [8, ROWS])
def test_nonfinite_weights_are_refused(spec, rows):
    """NaN in a later window too."""
    x = weights()
    x[15, 3] = np.nan
    with pytest.raises(TensorError, match="holds NaN or infinity"):
        quantized(Cut(x, rows).matrix, spec, Sink(collect))


def test_no_rows():
    """A matrix without rows has planes without bytes."""
    grid, ((block,),) = quantized(Windows.whole(np.empty((0, 5), np.float32)), QuantSpec(), Sink(collect))
    assert block.planes.codes.shape == (0, 3)
    assert grid.scale.shape == (4,)
