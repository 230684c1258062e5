"""What a user did wrong, in one line, and what to do about it."""

import difflib
from collections.abc import Iterable


class ClipxError(Exception):
    """A mistake the user can mend; the command line prints it as ``error:`` and ``hint:`` and exits with 2.

    Args:
        message: what is wrong, one line, naming the argument and the value.
        hint: what to do, one line; None where there is nothing useful to say.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadSample(Exception):
    """One sample that cannot be used (truncated image, blank caption): skipped, counted, reported."""


def kind_of(reason: str) -> str:
    """The kind of mishap a BadSample tells of: ``truncated image`` of ``truncated image: a.jpg``."""
    return reason.partition(":")[0]


def did_you_mean(word: str, choices: Iterable[str], limit: int = 20) -> str:
    """Name the choices nearest to ``word``, then the valid ones.

    Returns:
        ``did you mean 'adamw'? valid: adamw, sgd`` or only the list where nothing is near.
    """
    valid = sorted(set(choices))
    near = difflib.get_close_matches(word, valid, n=3, cutoff=0.6)
    shown = ", ".join(valid[:limit]) + (f", ... ({len(valid)} in all)" if len(valid) > limit else "")
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}? valid: {shown}"
    return f"valid: {shown}" if valid else "there is nothing to choose from"


def missing_extra(package: str, extra: str) -> ClipxError:
    """The error for an optional package that is not installed, naming the extra that brings it."""
    return ClipxError(f"{package} is not installed", hint=f'pip install "clipx[{extra}]"')
