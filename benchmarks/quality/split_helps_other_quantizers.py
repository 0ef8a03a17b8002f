"""Claim: other people's weight quantizers lose less on the split model than on the model itself.

    python -m benchmarks.quality.split_helps_other_quantizers

torchao on all-MiniLM-L6-v2 (Linear layers; cosine of its sentence embeddings to those of the float model), and
optimum-quanto and PT2E (XNNPACK's quantizer, INT8 activations, calibrated on the first 100 images) on ResNet-20 (top-1 on
1,000 CIFAR-10 test images). Split with k = 3 by `sqt.split(model)` as it is, and with borders per channel where the quantizer
has a grid per channel. The parts by value of a symmetric quantizer are those of an asymmetric one: that is what one loses
there; those by magnitude are made for it. Residual parts are on the quantizer's own grid, as its convention has it (for torchao's
symmetric one, absmax / 7.5, there is none: those of the narrow range are taken).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

import splitquant.torch as sqt
from benchmarks.quality import cifar10, minilm
from splitquant import QuantSpec

Quantizer = Callable[[nn.Module], nn.Module]
SPLITS = {
    "k=3": sqt.SPLIT,
    "k=3, borders per channel": replace(sqt.SPLIT, granularity="channel"),
    "k=2": replace(sqt.SPLIT, clusters=2),
}


def torchao(config: object) -> Quantizer:
    """The quantize_ of torchao with a weight-only configuration."""
    from torchao.quantization import quantize_

    def apply(model: nn.Module) -> nn.Module:
        quantize_(model, config)
        return model

    return apply


def quanto(name: str) -> Quantizer:
    """optimum-quanto, weights only; its unpacking is done in Python, since its C++ extension is compiled for minutes."""
    from optimum import quanto as oq
    from optimum.quanto.library.extensions import get_extension

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)  # noqa: SLF001

    def apply(model: nn.Module) -> nn.Module:
        oq.quantize(model, weights=getattr(oq, name))
        oq.freeze(model)
        return model

    return apply


def pt2e(per_channel: bool, batch: torch.Tensor, largest: int = 127) -> Quantizer:
    """PT2E with XNNPACK's quantizer; largest: code of a weight."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    def apply(model: nn.Module) -> nn.Module:
        config = get_symmetric_quantization_config(per_channel, weight_qmin=-largest, weight_qmax=largest)
        quantizer = XNNPACKQuantizer().set_global(config)
        prepared = prepare_pt2e(torch.export.export(model, (batch,)).module(), quantizer)
        prepared(batch)
        return convert_pt2e(prepared)

    return apply


def line(
    name: str, quantizer: Quantizer, model: nn.Module, score: Callable[[nn.Module], float], grid: QuantSpec | None
) -> str:
    """One row: the model itself, then each way to split it. grid: the quantizer's own one (None: residual parts have none)."""
    scores = [f"{score(quantizer(copy.deepcopy(model))):.3f}"]
    granularity = "tensor" if grid is None else str(grid.granularity)
    specs = [*SPLITS.values(), QuantSpec(clusters=2, strategy="magnitude", granularity=granularity), grid]
    scores += ["" if spec is None else f"{score(quantizer(sqt.split(model, spec).model)):.3f}" for spec in specs]
    return f"| {name} | " + " | ".join(scores) + " |"


def residual(bits: int, granularity: str, symmetric: bool) -> QuantSpec:
    """Two residual parts for a quantizer's grid."""
    return QuantSpec(bits, 2, "residual", granularity, symmetric)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerAxis, PerTensor
    from transformers import AutoModel, AutoTokenizer

    heads = ("not split", *SPLITS, "k=2 magnitude", "k=2 residual")
    print("| quantizer | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    tokenizer, sentences = AutoTokenizer.from_pretrained(minilm.MODEL), minilm.real_sentences()[::6]
    encoder = AutoModel.from_pretrained(minilm.MODEL).eval()
    reference = minilm.embed(encoder, tokenizer, sentences)

    def cosine(model: nn.Module) -> float:
        return float((minilm.embed(model, tokenizer, sentences) * reference).sum(1).mean())

    for bits in (4, 3):
        for mapping in ("ASYMMETRIC", "SYMMETRIC"):
            kind = {"weight_dtype": getattr(torch, f"int{bits}"), "mapping_type": ao.MappingType[mapping]}
            config = ao.IntxWeightOnlyConfig(granularity=PerAxis(0), **kind)
            name = f"torchao INT{bits} per channel, {mapping.lower()}: cosine"
            grid = residual(bits, "channel", mapping == "SYMMETRIC")
            print(line(name, torchao(config), encoder, cosine, grid), flush=True)
    print(
        line(
            "torchao INT8 per tensor, symmetric: cosine",
            torchao(ao.Int8WeightOnlyConfig(granularity=PerTensor())),
            encoder,
            cosine,
            None,
        ),
        flush=True,
    )

    network, (pixels, labels) = cifar10.network("ResNet-20"), cifar10.images()

    def top1(model: nn.Module) -> float:
        return cifar10.top1(model, pixels, labels)

    for name in ("qint4", "qint2"):
        print(line(f"optimum-quanto {name}: top-1", quanto(name), network, top1, None), flush=True)
    for bits in (8, 4):
        for granularity in ("tensor", "channel"):
            quantizer = pt2e(granularity == "channel", pixels[:100], 2 ** (bits - 1) - 1)
            grid = residual(bits, granularity, symmetric=True) if bits == 4 else None
            name = f"PT2E XNNPACK INT{bits} per {granularity}, symmetric: top-1"
            print(line(name, quantizer, network, top1, grid), flush=True)


if __name__ == "__main__":
    main()
