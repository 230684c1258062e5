"""Checks of what a user sets."""

from collections.abc import Iterable, Sequence, Sized

from clipx.errors import ClipxError, did_you_mean

Names = str | Sequence[str] | None


def one_of(word: str, valid: Sequence[str], what: str) -> str:
    """The word, if it is one of the valid ones.

    Raises:
        ClipxError: naming the argument ``what`` and the words nearest to the one given.
    """
    if word not in valid:
        raise ClipxError(f"scenes: {what} cannot be {word!r}", hint=did_you_mean(str(word), valid))
    return word


def choose(words: Names, valid: Iterable[str], what: str) -> tuple[str, ...]:
    """Names given by a user: one, several, or None for all of the valid ones.

    Returns:
        The chosen names in the order given, without repeats.

    Raises:
        ClipxError: a name that does not exist, or an empty choice.
    """
    valid = tuple(valid)
    if words is None:
        return valid
    several = isinstance(words, Iterable) and not isinstance(words, str)
    chosen: tuple[str, ...] = tuple(dict.fromkeys(words if several else (str(words),)))
    if not chosen:
        raise ClipxError(f"scenes: {what} is empty", hint=f"null for all, or some of: {', '.join(valid)}")
    return tuple(one_of(word, valid, what) for word in chosen)


def chosen_if_any(words: Names | bool, valid: Iterable[str], what: str) -> tuple[str, ...]:
    """Names of things that are off unless asked for: None, False or nothing for none of them, True for all.

    Raises:
        ClipxError: a name that does not exist.
    """
    if words is True:
        return tuple(valid)
    if words is None or words is False or (isinstance(words, Sized) and len(words) == 0):
        return ()
    return choose(words, valid, what)


def at_least(least: int, **values: float) -> None:
    """Check numbers against a lower bound.

    Raises:
        ClipxError: naming the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise ClipxError(f"scenes: {name} cannot be {value!r}", hint=f"a number of at least {least}")


def rates(**values: float) -> None:
    """Check that numbers are shares in [0, 1].

    Raises:
        ClipxError: naming the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ClipxError(f"scenes: {name} cannot be {value!r}", hint="a share between 0 and 1")


def bounds(value: int | Sequence[int], most: int, what: str) -> tuple[int, int]:
    """Fewest and most of something, from one number or two, within 1..most.

    Raises:
        ClipxError: not that.
    """
    ends = list(value) if isinstance(value, Iterable) else [value, value]
    whole = len(ends) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if not whole or not 1 <= ends[0] <= ends[1] <= most:
        raise ClipxError(f"scenes: {what} cannot be {value}", hint=f"fewest and most within 1..{most}: [1,3]")
    return ends[0], ends[1]
