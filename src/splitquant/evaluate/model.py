"""A language model as evaluation sees it: token ids in, log-probabilities of chosen tokens out.

The head over the vocabulary is most of the work of a small model and all of the memory, so it is applied at scored positions
only, a few at a time: the model's body gives hidden states, and the head's input is caught on its way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from splitquant.core.arrays import F64, I64
from splitquant.errors import MissingExtraError, SourceError
from splitquant.hf.register import METHOD, install
from splitquant.storage.json_file import read_json
from splitquant.storage.workplace import fingerprint_of

_LOGIT_BYTES = 128 << 20  # of the logits that exist at a time
_NO_LIMIT = 1 << 20  # tokenizers say "no limit" with numbers far above
_TOLERANCE = 2e-3  # of two ways to the same logits, relative to the largest


class LanguageModel:
    """A causal language model of transformers with its tokenizer.

    Args:
        model: any model that gives logits `[batch, tokens, vocabulary]`; it is put into evaluation mode.
        tokenizer: of transformers; None: token ids are given.
        name: what results call it.
        fingerprint: what tells its files from others; None: it is in memory only.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, *, name: str = "model", fingerprint: str | None = None
    ) -> None:
        self.model, self.tokenizer, self.name, self.fingerprint = model.eval(), tokenizer, name, fingerprint

    @property
    def config(self) -> Any:
        """The configuration of its text part."""
        config = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def longest(self) -> int:
        """The most tokens it reads at once: what lm-evaluation-harness takes, in its order; 2,048 where nothing says it."""
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if isinstance(found := getattr(self.config, name, None), int):
                return found
        found = getattr(self.tokenizer, "model_max_length", None)
        return found if isinstance(found, int) and found < _NO_LIMIT else 2048

    @property
    def beginning(self) -> int:
        """The token before a text that has none: that which begins texts, or which ends them."""
        for name in ("bos_token_id", "eos_token_id"):
            if (found := getattr(self.tokenizer, name, None)) is not None:
                return int(found)
        raise SourceError(f"{self.name}: its tokenizer has no token that begins or ends a text")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer adds, once: a chat template may have begun the text itself."""
        begun = (token := getattr(self.tokenizer, "bos_token", None)) and text.startswith(token)
        ids: list[int] = self.tokenizer.encode(text, **({"add_special_tokens": False} if begun else {}))
        return ids

    def features(self, ids: Any, cache: Any = None) -> Any:
        """What the head is given at every position, `[batch, tokens, width]`; the head itself is not run.

        Where a model has no head that can be told apart, these are the logits themselves.

        Args:
            ids: int64 `[batch, tokens]`.
            cache: what was read before them, and takes them in; None: nothing was.
        """
        import torch  # noqa: PLC0415 - an extra, brought by whoever made the model

        with torch.inference_mode():
            return _reached(self.model, self._head, ids, cache)

    def cache(self) -> Any:
        """An empty cache, for `features` to fill and go on from."""
        from transformers import DynamicCache  # noqa: PLC0415

        return DynamicCache(config=self.config)

    def logits(self, features: Any) -> Any:
        """The logits of some positions, float32 `[positions, vocabulary]`."""
        import torch  # noqa: PLC0415

        if self._head is None:
            return features.float()
        with torch.inference_mode():
            return _finished(self._head(features), self.config).float()

    def log_probs(self, features: Any, rows: I64, targets: I64) -> F64:
        """The log-probability, natural, of a target token at a row of features, for each pair of the two.

        Args:
            features: `[positions, width]`.
            rows: int64 `[pairs]`, rising.
            targets: int64 `[pairs]`.
        """
        import torch  # noqa: PLC0415

        found = np.empty(len(rows))
        size = self.rows_at_once
        with torch.inference_mode():
            for start in range(0, len(features), size):
                logits = self.logits(features[start : start + size])
                begin, end = np.searchsorted(rows, (start, start + size))
                at = torch.from_numpy(rows[begin:end] - start)
                picked = logits[at, torch.from_numpy(targets[begin:end])] - logits.logsumexp(-1)[at]
                found[begin:end] = picked.double().numpy()
        return found

    @cached_property
    def rows_at_once(self) -> int:
        """At how many positions the head is applied at a time."""
        return int(max(1, _LOGIT_BYTES // (4 * self.vocabulary)))

    @cached_property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return int(self._sample[1].shape[-1])

    @cached_property
    def _sample(self) -> tuple[Any, Any]:
        """A few ids and the model's own logits for them."""
        import torch  # noqa: PLC0415

        ids = torch.arange(6).remainder(max(2, getattr(self.config, "vocab_size", 2))).unsqueeze(0)
        with torch.inference_mode():
            return ids, self.model(ids).logits

    @cached_property
    def _head(self) -> Any:
        """The head, if applying it to what was caught gives the model's own logits; else None."""
        import torch  # noqa: PLC0415

        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            return None
        ids, expected = self._sample
        with torch.inference_mode():
            features = _reached(self.model, head, ids, None)
            if features.shape[:2] != ids.shape:
                return None
            return head if _same(_finished(head(features), self.config), expected) else None

    @cached_property
    def shares_prefixes(self) -> bool:
        """Whether continuing from the repeated cache of a prefix gives what reading it whole gives."""
        import torch  # noqa: PLC0415

        ids, expected = self._sample
        try:
            cache = self.cache()
            self.features(ids[:, :3], cache)
            cache.batch_select_indices(torch.tensor([0, 0]))
            with torch.inference_mode():
                logits = self.logits(self.features(ids[:, 3:].repeat(2, 1), cache))
        except Exception:  # noqa: BLE001 - whatever a model's own code does where it has no such cache
            return False
        return _same(logits, expected[:, 3:].expand_as(logits))

    @property
    def longest_shared(self) -> int:
        """The longest sequence whose prefix is shared: a sliding window forgets what lies further back."""
        sliding = getattr(self.config, "sliding_window", None)
        return min(self.longest, sliding) if isinstance(sliding, int) else self.longest


class _Reached(BaseException):
    """The head was reached, with what it is given: no error, so that nothing on its way takes it for one."""

    def __init__(self, features: Any) -> None:
        self.features = features


def _reached(model: Any, head: Any, ids: Any, cache: Any) -> Any:
    """Run a model up to its head; the whole of it where the head is None, or is not asked."""
    options = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}

    def stop(_: Any, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0])

    if head is None:
        return model(ids, **options).logits
    handle = head.register_forward_pre_hook(stop)
    try:
        return model(ids, **options).logits
    except _Reached as reached:
        return reached.features
    finally:
        handle.remove()


def _finished(logits: Any, config: Any) -> Any:
    """What models do to the logits after the head: scale them (Cohere, Granite), bend them (Gemma 2)."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    return logits


def _same(logits: Any, expected: Any) -> bool:
    if logits.shape != expected.shape:
        return False
    return bool((logits - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def open_language_model(path: str | Path, *, dtype: str = "float32", packed: bool = False) -> LanguageModel:
    """Open a Hugging Face folder, float or quantized, as a language model.

    Args:
        path: the folder, with a tokenizer in it.
        dtype: what it computes in; float32 is the fastest and the most exact on most processors.
        packed: whether quantized weights stay packed: far less memory, and each is decoded anew wherever it is used. Else
            they are decoded once, to the same values.

    Raises:
        SourceError: for what is no folder of a causal language model. MissingExtraError: without transformers.
    """
    folder = Path(path)
    check_folder(folder)
    transformers = ready_transformers()
    with quiet(transformers):
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise SourceError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
            kind = read_json(folder / "config.json").get("model_type")
            raise SourceError(
                f"{folder}: is no language model that writes (its model_type is {kind!r}); "
                "sentence encoders are evaluated with --embeddings, image classifiers with --images"
            ) from error
        except OSError as error:
            raise SourceError(f"{folder}: transformers cannot load it ({first_line(error)})") from error
        tokenizer = open_tokenizer(folder)
    if not packed:
        model = decoded(model)
    return LanguageModel(
        model, tokenizer, name=folder.name or str(folder), fingerprint=f"{dtype} {fingerprint(folder)}"
    )


def decoded(model: Any) -> Any:
    """A model whose packed weights are floats; one that has none, or another tool's, as it is."""
    config = getattr(model.config, "quantization_config", None)
    return model.dequantize() if getattr(config, "quant_method", None) == METHOD else model


def check_folder(folder: Path) -> None:
    """SourceError for what is no Hugging Face folder."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; expected a Hugging Face folder, float or quantized")
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: is no model folder (it has no config.json); expected a Hugging Face folder")


def ready_transformers() -> Any:
    """The package transformers, which knows how to read quantized folders; MissingExtraError without it."""
    for need in ("torch", "transformers", "safetensors"):
        if find_spec(need) is None:
            raise MissingExtraError(need, "hf")
    install()
    import transformers  # noqa: PLC0415 - an extra, asked for by calling this

    return transformers


class quiet:  # noqa: N801 - reads like a function
    """Silence the bars and warnings of transformers while a model is loaded."""

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging

    def __enter__(self) -> None:
        self._level, self._bar = self._logging.get_verbosity(), self._logging.is_progress_bar_enabled()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        if self._bar:
            self._logging.enable_progress_bar()


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; SourceError where it has none."""
    transformers = ready_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); "
            "copy tokenizer.json and tokenizer_config.json from the model's own folder"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fingerprint(folder: Path) -> str:
    """What tells a folder's model and tokenizer from others."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".bin", ".model"))
    return json.dumps([[path.name, fingerprint_of(path)] for path in files])


def padded(rows: Sequence[Sequence[int]]) -> Any:
    """Rows of ids as one tensor, filled up on the right, where a causal model cannot see it."""
    import torch  # noqa: PLC0415

    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
