"""Every error that splitquant raises on purpose.

    SplitQuantError
    ├── SpecError         (ValueError)  an option or a combination of options makes no sense
    ├── TensorError       (ValueError)  a tensor cannot be quantized as asked (NaN, wrong shape, unknown dtype)
    ├── SourceError       (OSError)     the input folder or one of its files is missing, damaged or of an unknown kind
    ├── DestinationError  (OSError)     the output cannot be written where it was asked for
    ├── VerifyError       (ValueError)  a written folder does not hold what it should hold
    └── MissingExtraError (ImportError) an optional framework is needed and not installed

A message names the file, the tensor, what was found, what was expected and what to do.
"""

from __future__ import annotations


class SplitQuantError(Exception):
    """Root of all expected errors; the command line prints them without a traceback and exits with `exit_code`."""

    exit_code = 1


class SpecError(SplitQuantError, ValueError):
    """An option, or a combination of options, is not possible."""

    exit_code = 2


class TensorError(SplitQuantError, ValueError):
    """A tensor cannot be quantized as asked."""


def tensor_error(file: object, name: str, error: TensorError) -> TensorError:
    """What is wrong with a tensor, with the file and the tensor it is of, and what to do."""
    return TensorError(
        f"{file}: tensor {name!r} {error}; repair the model, or keep this tensor as it is with --exclude {name!r}"
    )


class SourceError(SplitQuantError, OSError):
    """The input is missing, damaged, or of a kind that is not read."""


class DestinationError(SplitQuantError, OSError):
    """The output cannot be written where it was asked for."""


class VerifyError(SplitQuantError, ValueError):
    """A written folder does not hold what it should hold."""


class MissingExtraError(SplitQuantError, ImportError):
    """A framework is needed that the installed extras do not bring."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(
            f"{need} is needed here and is not installed; install it with: pip install 'splitquant[{extra}]'"
        )
