"""What an adapter is given, checked once and in one place, before any mathematics."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipx.errors import ClipxError

_SLACK = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far from 1 the length of a row may be: what rounding of its dtype can do, with room."""


class Support(NamedTuple):
    """Checked inputs of ``fit``, of one float dtype (float32 or float64) and on one device.

    ``features`` ``[N, D]``, ``labels`` int64 ``[N]``, ``text_classifier`` ``[C, D]``, ``groups`` int64
    ``[N]`` counting from 0 (the image of each row), ``validation`` features and labels, or None.
    """

    features: Tensor
    labels: Tensor
    text_classifier: Tensor
    groups: Tensor
    validation: tuple[Tensor, Tensor] | None

    @property
    def classes(self) -> int:
        """The number of classes, of the head: a class need not have a shot."""
        return len(self.text_classifier)


def checked(
    features: Tensor,
    labels: Tensor,
    text_classifier: Tensor,
    *,
    logit_scale: float,
    validation: tuple[Tensor, Tensor] | None = None,
    groups: Tensor | None = None,
    unit: bool = True,
    same_width: bool = True,
) -> Support:
    """Check what ``fit`` is given, and bring it to one dtype and device, those of the features.

    Half precision becomes float32: sums over a thousand shots need the digits.

    Args:
        features: ``[N, D]``.
        labels: integers ``[N]``, in [0, C).
        text_classifier: ``[C, D]`` unit rows, C >= 2.
        logit_scale: > 0.
        validation: features and labels, as above, or None; an empty one counts as None.
        groups: integers ``[N]``, the image of every row; None: a row is an image.
        unit: features must be unit rows.
        same_width: features must be as wide as the classifier.

    Raises:
        ClipxError: naming the first row, label or number that is wrong.
    """
    width = text_classifier.shape[-1] if same_width else None
    check_rows(text_classifier, "text_classifier", unit=True)
    if len(text_classifier) < 2:
        raise ClipxError(
            f"the text classifier has {len(text_classifier)} class: there is nothing to tell apart",
            hint="give two class names or more",
        )
    if not 0 < float(logit_scale) < float("inf"):
        raise ClipxError(f"logit_scale is {float(logit_scale)}, must be above 0 and finite")
    check_rows(features, "features", unit=unit, width=width)
    if not len(features):
        raise ClipxError("there is no shot to learn from")
    dtype, device = _working(features.dtype, text_classifier.dtype), features.device
    labels = check_labels(labels, len(features), len(text_classifier), "features").to(device)
    if validation is not None and len(validation[0]):
        width = width if same_width else features.shape[1]
        check_rows(validation[0], "validation features", unit=unit, width=width)
        truth = check_labels(validation[1], len(validation[0]), len(text_classifier), "validation features")
        validation = (validation[0].to(device, dtype), truth.to(device))
    else:
        validation = None
    return Support(
        features.to(dtype),
        labels,
        text_classifier.to(device, dtype),
        _check_groups(groups, labels),
        validation,
    )


def _working(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_rows(rows: Tensor, name: str, *, unit: bool = True, width: int | None = None) -> None:
    """Check a matrix of features.

    Args:
        rows: ``[N, D]``, any float dtype.
        name: what to call it.
        unit: rows must have length 1.
        width: D, where it is given.

    Raises:
        ClipxError: not a matrix of floats, of another width, a NaN or infinity, or a row that is not of
            length 1, naming the row.
    """
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ClipxError(f"{name} is {rows.dtype} {list(rows.shape)}, must be a matrix of floats")
    if width is not None and rows.shape[1] != width:
        raise ClipxError(
            f"{name} has {rows.shape[1]} dimensions, the classifier {width}",
            hint="do they come from the same model?",
        )
    # The length says both at once: it is not finite where an entry is not.
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=_working(rows.dtype))
    wrong = (~lengths.isfinite()).nonzero()
    if len(wrong):
        raise ClipxError(
            f"{name}: row {int(wrong[0])} holds NaN or infinity ({len(wrong)} such rows)",
            hint="encode again with precision=fp32, which rules out overflow",
        )
    if unit:
        wrong = ((lengths - 1).abs() > _SLACK.get(rows.dtype, 1e-3)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ClipxError(
                f"{name}: row {row} has length {float(lengths[row]):.4g}, must be 1 ({len(wrong)} such rows)",
                hint="torch.nn.functional.normalize(features, dim=-1)",
            )


def check_labels(labels: Tensor, rows: int, classes: int, name: str) -> Tensor:
    """Check that there is one label a row, in [0, classes), and return them as int64.

    Raises:
        ClipxError: naming the first label that is wrong.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ClipxError(f"labels are {labels.dtype} {list(labels.shape)}, must be a vector of integers")
    if len(labels) != rows:
        raise ClipxError(f"{rows} rows of {name} have {len(labels)} labels")
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        raise ClipxError(
            f"label {int(labels[outside[0]])} of row {int(outside[0])} is outside the {classes} classes"
            f" ({len(outside)} such rows)",
            hint=f"labels count from 0 to {classes - 1}: does the data have more classes than names?",
        )
    return labels.long()


def _check_groups(groups: Tensor | None, labels: Tensor) -> Tensor:
    if groups is None:
        return torch.arange(len(labels), device=labels.device)
    if groups.shape != labels.shape or groups.is_floating_point():
        raise ClipxError(f"groups are {groups.dtype} {list(groups.shape)}, must be {len(labels)} integers")
    _, groups = groups.to(labels.device).unique(return_inverse=True)
    rows = torch.arange(len(labels), device=labels.device)
    first = rows.new_full((int(groups.max()) + 1,), len(rows)).scatter_reduce(0, groups, rows, "amin")
    torn = (labels[first[groups]] != labels).nonzero()
    if len(torn):
        raise ClipxError(f"row {int(torn[0])} has another label than a view of the same image")
    return groups


def shots_per_class(support: Support, *, missing: str) -> Tensor:
    """Rows of every class: int64 ``[C]``.

    Args:
        support: checked inputs.
        missing: where a class has no shot: ``error``, ``warn`` or ``allow``.

    Raises:
        ClipxError: naming the first class without a shot, if that is an error.
    """
    counts = support.labels.bincount(minlength=support.classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty and missing != "allow":
        few = f"class {empty[0]} has no shot" + (f" ({len(empty)} such classes)" if len(empty) > 1 else "")
        if missing == "error":
            raise ClipxError(few, hint="add an image of it, or leave its name out")
        warnings.warn(f"{few}: its zero-shot logit stays as it is", stacklevel=3)
    return counts


def check_queries(features: Tensor, like: Tensor, *, unit: bool = True, width: int | None = None) -> Tensor:
    """Check the rows that ``logits`` is asked about, and bring them to the dtype and device of ``like``.

    Args:
        features: ``[M, D]``; M may be 0.
        like: a learnt tensor, whose last dimension is D unless ``width`` is given.
        unit: features must be unit rows.
        width: D, where ``like`` does not tell.

    Raises:
        ClipxError: as ``check_rows``.
    """
    check_rows(features, "features", unit=unit, width=like.shape[-1] if width is None else width)
    return features.to(like.device, like.dtype)


def check_number(
    name: str,
    value: float,
    *,
    least: float = 0.0,
    most: float = float("inf"),
    open_below: bool = False,
) -> None:
    """Check that a hyperparameter lies in [least, most], or (least, most] if ``open_below``.

    Raises:
        ClipxError: naming the argument and the value.
    """
    inside = (least < value if open_below else least <= value) and value <= most and value != float("inf")
    if not inside:
        below = f"above {least:g}" if open_below else f"{least:g} or more"
        above = "" if most == float("inf") else f" and at most {most:g}"
        raise ClipxError(f"{name} is {value}, must be {below}{above}")


def check_spread(name: str, grid: Sequence[float]) -> None:
    """Check that a grid is first, last and number of equally spaced values, above 0 and ascending.

    Raises:
        ClipxError: naming the grid and what is wrong with it.
    """
    if len(grid) != 3:
        raise ClipxError(f"{name} is {list(grid)}, must be [first, last, number]")
    check_number(name, grid[0], open_below=True)
    check_number(name, grid[1], least=grid[0])
    check_number(name, grid[2], least=1)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a hyperparameter is one of its choices.

    Raises:
        ClipxError: with the nearest ones.
    """
    if value not in choices:
        from clipx.errors import did_you_mean

        raise ClipxError(f"unknown {name} {value!r}", hint=did_you_mean(str(value), choices))


def check_fitted(adapter: object) -> None:
    """Check that ``fit`` was called.

    Raises:
        ClipxError: if nothing is learnt yet.
    """
    if not any(name.endswith("_") and not name.startswith("_") for name in vars(adapter)):
        raise ClipxError(f"this {type(adapter).__name__} is not fitted", hint="call fit first")
