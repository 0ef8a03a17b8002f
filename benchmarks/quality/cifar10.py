"""Claim: the split keeps the accuracy of trained networks at widths where plain linear quantization loses it.

    python -m benchmarks.quality.cifar10 [--docs]

ResNet-20 and ResNet-56, trained on CIFAR-10, on 1,000 real test images: top-1 of the float network and of every scheme at
INT8, INT4, INT3 and INT2, for weights alone and together with INT8 dynamic activations (as `sqt.quantize(activations=...)`
has them), with one grid per tensor (a batch of 100 images) or per token (the convolutions' token is an image); the row
float32 has those alone. All convolutions and the last layer are quantized, the first one too. Then the author's first
version's way of clustering beside ours, in seconds and in dB. --docs rewrites docs/results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import splitquant.torch as sqt
from splitquant import PAPER, QuantSpec
from splitquant.core.affine import affine_piece
from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.split import quantize_array

DATA = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
NETWORKS = {"ResNet-20": ("resnet20-12fca82f.th", 3), "ResNet-56": ("resnet56-4bfd9763.th", 9)}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 100


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the size changes it drops every second pixel and adds zero channels."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.stride, self.wider = stride, outs - ins

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return functional.relu(y + functional.pad(short, (0, 0, 0, 0, self.wider // 2, self.wider // 2)))


class ResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. with `blocks` blocks per stage."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*[Block(ins if i == 0 else outs, outs, outs // ins if i == 0 else 1) for i in range(blocks)])
            for ins, outs in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def network(name: str, data: Path = DATA) -> ResNet:
    """A trained network."""
    file, blocks = NETWORKS[name]
    model = ResNet(blocks).eval()
    state = torch.load(data / file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model


def images(data: Path = DATA) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images, normalized, float32 `[1000, 3, 32, 32]`, and their labels."""
    found = np.load(data / "cifar10_test1000.npz")
    pixels, labels = (found[key] for key in sorted(found.files, key=lambda key: -found[key].ndim))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return (torch.from_numpy(pixels).float() / 255 - mean) / deviation, torch.from_numpy(labels).long()


@torch.no_grad()
def top1(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images whose class the network names first."""
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(pixels.split(BATCH), labels.split(BATCH), strict=True)]
    return float(sum(hits)) / len(labels)


@contextmanager
def int8_activations(model: nn.Module, activations: str, layers: Collection[str] | None = None) -> Iterator[nn.Module]:
    """A float32 model with the inputs of its convolutions and Linear layers (or the named ones) on INT8 grids."""
    grid = sqt.DynamicInt8.parse(activations)
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: (grid(args[0], layer.weight.ndim), *args[1:]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and (layers is None or name in layers)
    ]
    yield model
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Scheme:
    """One row of the table; no spec is the float network."""

    name: str
    spec: QuantSpec | None


@dataclass(frozen=True)
class Result:
    """What a scheme keeps of one network: top-1 with float, per-tensor INT8 and per-token INT8 activations."""

    scheme: Scheme
    bits_per_weight: float
    sqnr_db: float
    top1: tuple[float, float, float]


def schemes() -> list[Scheme]:
    """Float, then plain, paper, min_error in the same form, the default, and plain at the default's stored bits."""
    rows = [Scheme("float32", None)]
    for bits in (8, 4, 3, 2):
        rows += [
            Scheme(f"INT{bits} plain, per tensor", QuantSpec(bits, 1, granularity="tensor", layout="parallel")),
            Scheme(f"INT{bits} paper: k=3 kmeans", replace(PAPER, bits=bits)),
            Scheme(f"INT{bits} k=3 min_error, same form", replace(PAPER, bits=bits, strategy="min_error")),
            Scheme(f"INT{bits} splitquant (default)", QuantSpec(bits)),
        ]
        if 2 * bits <= 8:
            rows.append(Scheme(f"INT{bits} k=2 residual", QuantSpec(bits, 2, "residual", "tensor")))
            rows.append(Scheme(f"INT{bits} k=2 magnitude (symmetric)", QuantSpec(bits, 2, "magnitude", "tensor")))
        if bits + 2 <= 8:
            rows.append(Scheme(f"INT{bits + 2} plain, per channel", QuantSpec(bits + 2, 1, granularity="channel")))
    return rows


def run(scheme: Scheme, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> Result:
    """One scheme on one network. The layers computed with are the merged ones: the same weights and grids, in less time."""
    bits, sqnr, merged = 32.0, float("inf"), model
    if scheme.spec is not None:
        quantized, report = sqt.quantize(model, scheme.spec)
        packed = [module for module in quantized.modules() if isinstance(module, sqt.PackedWeight)]
        stored = sum(buffer.nbytes for module in packed for buffer in module.buffers())
        bits, sqnr = 8 * stored / report.figures.weights, report.figures.sqnr_db
        merged = sqt.merge(quantized, inplace=True).model
    found = [top1(merged, pixels, labels)]
    for activations in ("int8-tensor", "int8-token"):
        with int8_activations(merged, activations):
            found.append(top1(merged, pixels, labels))
    return Result(scheme, bits, sqnr, (found[0], found[1], found[2]))


@dataclass(frozen=True)
class Clustering:
    """How long borders take for all layers of a network, and what INT4 loses with them."""

    name: str
    seconds: float
    sqnr_db: float


def clusterings(model: nn.Module) -> list[Clustering]:
    """The first version's way (scikit-learn's KMeans on the flattened weights of each layer) and ours, at INT4 with k = 3."""
    from benchmarks.speed.published_clustering import published

    layers = [m.weight.detach().numpy() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    start = time.perf_counter()
    parts = [published(weights, 3) for weights in layers]
    rows = [
        Clustering("first version: scikit-learn KMeans", time.perf_counter() - start, error_of(layers, parts).sqnr_db)
    ]
    for strategy in ("kmeans", "min_error"):
        spec = replace(PAPER, strategy=strategy)
        start = time.perf_counter()
        cut = [quantize_array(weights, spec) for weights in layers]
        total = NO_ERROR
        for tensor in cut:
            total = total.merge(tensor.figures or NO_ERROR)
        rows.append(Clustering(f"splitquant: {strategy}, with codes", time.perf_counter() - start, total.sqnr_db))
    return rows


def error_of(layers: list[np.ndarray], parts: list[list[np.ndarray]]) -> ErrorFigures:
    """What INT4 loses on given parts: each part's grid holds its weights and zero."""
    total = NO_ERROR
    for weights, cut in zip(layers, parts, strict=True):
        found = np.zeros(weights.shape)
        for part in cut:
            scale, offset = affine_piece(float(part.min()), float(part.max()), PAPER)
            code = np.clip(np.rint((part - offset) / scale), 0, 15) if scale else 0.0
            found += scale * code + offset
        noise = float(((weights - found) ** 2).sum())
        total = total.merge(ErrorFigures(weights.size, float((weights.astype(np.float64) ** 2).sum()), noise, 0.0))
    return total


COLUMNS = ("weights", "bits/weight", "SQNR dB", "float activations", "INT8 per tensor", "INT8 per token")


def cells(result: Result) -> tuple[str, ...]:
    """A result as text; top-1 in percent."""
    sqnr = "" if result.scheme.spec is None else f"{result.sqnr_db:.2f}"
    return (result.scheme.name, f"{result.bits_per_weight:.2f}", sqnr, *(f"{100 * share:.1f}" for share in result.top1))


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def page(results: dict[str, list[Result]], speed: dict[str, list[Clustering]]) -> str:
    """All tables."""
    text = "# CIFAR-10 ResNets\n\n"
    text += (
        "Top-1 in percent on the first 1,000 CIFAR-10 test images (one image is 0.1). All convolutions and the last layer are\n"
        "quantized. *bits/weight* counts what is in memory: k layers of b bits in the parallel layout, b bits and a cluster id in\n"
        "the fused one (which is also what a file takes: 6 bits instead of 12 for the paper's INT4). *Same form* is the paper's\n"
        "with better borders alone, not polished. Activations: dynamic, asymmetric INT8, one grid for a batch of 100 images (*per\n"
        "tensor*) or one for each image (*per token*).\n"
        "Made by `python -m benchmarks.quality.cifar10 --docs`.\n"
    )
    for name, rows in results.items():
        text += f"\n## {name}\n\n{markdown(COLUMNS, [cells(row) for row in rows])}\n"
    text += (
        "\n![stored bits against top-1](cifar10.svg)\n\n"
        "INT8 leaves nothing to gain. Below it, one grid per tensor needs the split, and better borders than the paper's. At the\n"
        "same stored bits (the last row of each block) plain quantization per channel is as good, but for the fewest bits.\n"
        f"{activations_cost(results)}\n\n"
        "## Against the first version's clustering\n\n"
    )
    text += (
        "[jaewoosong/splitquant](https://github.com/jaewoosong/splitquant) clusters with scikit-learn's KMeans on the flattened\n"
        "weights of each layer. All layers of a network, INT4, k = 3, zero in every part's grid; seconds of this machine.\n\n"
    )
    rows = [(net, c.name, f"{c.seconds:.3f}", f"{c.sqnr_db:.2f}") for net, found in speed.items() for c in found]
    return text + markdown(("network", "borders by", "seconds", "SQNR dB"), rows) + "\n"


def activations_cost(results: dict[str, list[Result]]) -> str:
    """What INT8 activations cost at most, in a sentence."""
    rows = [row for found in results.values() for row in found]
    tensor, token = (max(100 * (row.top1[0] - row.top1[column]) for row in rows) for column in (1, 2))
    return (
        f"INT8 activations cost {tensor:.1f} points at most with one grid per tensor, {token:.1f} with one per token."
    )


def picture(results: dict[str, list[Result]]) -> None:
    """Stored bits against top-1, weights only."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "splitquant"
    figure, both = plt.subplots(1, len(results), figsize=(10, 4), sharey=True)
    kinds = {"plain, per tensor": "o", "paper": "s", "same form": "^", "default": "D", "plain, per channel": "x"}
    for axes, (name, rows) in zip(both, results.items(), strict=True):
        for kind, marker in kinds.items():
            mine = [row for row in rows if kind in row.scheme.name]
            label = mine[0].scheme.name.split(" ", 1)[1]
            axes.plot([r.bits_per_weight for r in mine], [100 * r.top1[0] for r in mine], marker=marker, label=label)
        axes.axhline(100 * rows[0].top1[0], color="gray", linestyle=":")
        axes.set(title=name, xlabel="bits per weight in memory", ylabel="top-1, %")
        axes.grid(alpha=0.3)
    both[-1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(RESULTS / "cifar10.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/cifar10.md and its picture")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there; it holds the trained networks and the test images")
    pixels, labels = images()
    results = {name: [run(scheme, network(name), pixels, labels) for scheme in schemes()] for name in options.networks}
    speed = {name: clusterings(network(name)) for name in options.networks}
    text = page(results, speed)
    print(text)
    if options.docs:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "cifar10.md").write_text(text)
        picture(results)


if __name__ == "__main__":
    main()
