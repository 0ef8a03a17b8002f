"""Image classifiers: the share of labelled images whose likeliest class is the label."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.core.arrays import F32, I64
from splitquant.errors import MissingExtraError, SourceError, SpecError
from splitquant.evaluate.model import check_folder, decoded, fingerprint, first_line, quiet, ready_transformers
from splitquant.evaluate.run import PLAIN, Run
from splitquant.evaluate.statistics import Estimate, mean
from splitquant.storage.json_file import read_json
from splitquant.storage.workplace import fingerprint_of


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images, uint8 or float `[images, channels, height, width]`, and the class of each, int64 `[images]`."""

    pixels: NDArray[Any]
    labels: I64
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def prepared(self, some: Sequence[int]) -> F32:
        """Some images as a model takes them: bytes become 0 to 1, then `(pixel - mean) / deviation` per channel."""
        pixels = self.pixels[list(some)]
        values = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        if self.mean is not None and self.deviation is not None:
            shape = (1, -1, 1, 1)
            values = (values - np.asarray(self.mean, np.float32).reshape(shape)) / np.asarray(
                self.deviation, np.float32
            ).reshape(shape)
        return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True, slots=True)
class Images:
    """What a classifier makes of labelled images: the class it chose for each."""

    model: str
    labels: tuple[int, ...]
    chosen: tuple[int, ...]

    @property
    def top1(self) -> Estimate:
        """The share of images whose likeliest class is the label."""
        return mean([a == b for a, b in zip(self.labels, self.chosen, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        return {
            "model": self.model,
            "images": len(self.labels),
            "top1": self.top1.to_dict(),
            "chosen": list(self.chosen),
        }


@dataclass(frozen=True, slots=True)
class Classifier:
    """A function from images, float32 `[images, channels, height, width]`, to scores `[images, classes]`."""

    name: str
    scores: Callable[[F32], NDArray[Any]]
    fingerprint: str | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None


def of_module(module: Any, name: str = "model") -> Classifier:
    """A PyTorch module as a classifier; its output may be a tensor or have `logits`."""

    def scores(pixels: F32) -> NDArray[Any]:
        import torch  # noqa: PLC0415 - an extra, brought by whoever made the module

        with torch.inference_mode():
            found = module(torch.from_numpy(pixels))
        values: NDArray[Any] = getattr(found, "logits", found).float().numpy()
        return values

    module.eval()
    return Classifier(name, scores)


def open_classifier(path: str | Path) -> Classifier:
    """Open an .onnx file, or a Hugging Face folder, float or quantized, as an image classifier.

    Raises:
        SourceError: for what is none. MissingExtraError: without the framework that runs it.
    """
    source = Path(path)
    if source.suffix.lower() == ".onnx":
        return _onnx(source)
    check_folder(source)
    transformers = ready_transformers()
    with quiet(transformers):
        try:
            model = transformers.AutoModelForImageClassification.from_pretrained(
                source, dtype="float32", local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise SourceError(f"{source}: is no image classifier of transformers ({first_line(error)})") from error
    settings = source / "preprocessor_config.json"
    found = read_json(settings) if settings.is_file() else {}
    return Classifier(
        source.name or str(source),
        of_module(decoded(model)).scores,
        fingerprint(source),
        *(tuple(found[key]) if isinstance(found.get(key), list) else None for key in ("image_mean", "image_std")),
    )


def _onnx(path: Path) -> Classifier:
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx")
    import onnxruntime  # noqa: PLC0415 - an extra, asked for by the name of the source

    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise SourceError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        shown = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise SourceError(f"{path}: its inputs are {shown}; expected one of float images [N, channels, height, width]")
    fixed = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None

    def scores(pixels: F32) -> NDArray[Any]:
        size = fixed or len(pixels)
        parts = []
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            parts.append(session.run(None, {inputs[0].name: full})[0][: len(part)])
        return np.concatenate(parts)

    return Classifier(path.stem, scores, fingerprint_of(path))


def read_images(path: Path, limit: int | None = None, seed: int | None = None) -> Labelled:
    """Read labelled images: an .npz file with one array of four dimensions and one of labels.

    Args:
        path: the file; arrays `mean` and `std`, one number per channel, say how pixels are prepared.
        limit: only so many: the first ones, or with a seed a sample.
        seed: of the sample.

    Raises:
        SourceError: for what is no such file.
    """
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy, zipfile and zlib have no common one for what is damaged
        raise SourceError(f"{path}: is no .npz file ({error}); save images and labels with numpy.savez") from error
    pixels = [value for value in found.values() if value.ndim == 4 and value.dtype.kind in "uf"]
    labels = [value for value in found.values() if value.ndim == 1 and value.dtype.kind in "iu"]
    if len(pixels) != 1 or len(labels) != 1 or len(pixels[0]) != len(labels[0]) or not len(labels[0]):
        shown = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in found.items())
        raise SourceError(
            f"{path}: holds {shown or 'nothing'}; expected images [N, channels, height, width] and integer labels [N]"
        )
    taken = np.arange(len(labels[0]))
    if limit is not None and limit < 1:
        raise SpecError(f"the limit is {limit} images; expected 1 or more")
    if limit is not None and limit < len(taken):
        taken = taken[:limit] if seed is None else np.sort(np.random.default_rng(seed).permutation(len(taken))[:limit])
    prepared = [tuple(map(float, found[key])) if key in found else None for key in ("mean", "std")]
    return Labelled(pixels[0][taken], labels[0][taken].astype(np.int64), *prepared)


def images(model: Classifier, labelled: Labelled, *, run: Run = PLAIN) -> Images:
    """Classify labelled images.

    Args:
        model: see `open_classifier` and `of_module`.
        labelled: see `read_images`; where it does not say how pixels are prepared, the model's folder does.
        run: how to run; its batch counts images.

    Raises:
        SourceError: where the model does not take such images. SpecError: where nothing says how bytes are prepared.
    """
    if labelled.mean is None and model.mean is not None:
        labelled = Labelled(labelled.pixels, labelled.labels, model.mean, model.deviation)
    if labelled.pixels.dtype == np.uint8 and labelled.mean is None:
        raise SpecError(
            "the images are bytes and nothing says how they are prepared; "
            "add arrays 'mean' and 'std' (one number per channel) to the .npz file, or give --mean and --std"
        )
    channels = labelled.pixels.shape[1]
    for name, numbers in (("mean", labelled.mean), ("std", labelled.deviation)):
        if numbers is not None and len(numbers) != channels:
            raise SpecError(
                f"{name} has {len(numbers)} numbers and the images {channels} channels; give one per channel"
            )

    def chosen(some: Sequence[int]) -> list[int]:
        try:
            scores = model.scores(labelled.prepared(some))
        except Exception as error:
            shape = labelled.pixels.shape[1:]
            raise SourceError(f"{model.name}: does not take images {shape} ({first_line(error)})") from error
        return [int(one) for one in scores.reshape(len(some), -1).argmax(1)]

    data = (str(labelled.pixels.shape), _crc(labelled), labelled.mean, labelled.deviation)
    found = run.pieces("images", (model.fingerprint, data), range(len(labelled.labels)), chosen)
    return Images(model.name, tuple(int(one) for one in labelled.labels), tuple(found))


def _crc(labelled: Labelled) -> int:
    return zlib.crc32(np.ascontiguousarray(labelled.pixels).data)
