"""Effective robustness: accuracy under a shift beyond what accuracy without it lets one expect."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipx.errors import ClipxError

Floats = NDArray[np.float64]
Link = Literal["logit", "probit"]
LINKS = ("logit", "probit")


def linked(accuracy: ArrayLike, link: Link = "logit") -> Floats:
    """Accuracies in (0, 1) on the axis where models lie on a line: real numbers of the same shape."""
    from scipy.special import logit, ndtri

    return np.asarray((logit if link == "logit" else ndtri)(np.asarray(accuracy, np.float64)))


def unlinked(values: ArrayLike, link: Link = "logit") -> Floats:
    """The inverse of ``linked``: accuracies in (0, 1)."""
    from scipy.special import expit, ndtr

    return np.asarray((expit if link == "logit" else ndtr)(np.asarray(values, np.float64)))


def bounded(accuracy: ArrayLike, images: int) -> Floats:
    """Accuracies over so many images, half an image away from 0 and 1, where the link is infinite."""
    return np.clip(np.asarray(accuracy, np.float64), 0.5 / images, 1 - 0.5 / images)


@dataclass(frozen=True)
class Line:
    """``link(shifted) = slope link(clean) + intercept``; arrays of any shape, of several fits at once."""

    slope: Floats
    intercept: Floats
    link: Link

    def expected(self, clean: ArrayLike) -> Floats:
        """The accuracy under the shift that the baselines let one expect at a clean accuracy in (0, 1)."""
        return unlinked(self.slope * linked(clean, self.link) + self.intercept, self.link)


def line(clean: ArrayLike, shifted: ArrayLike, link: Link = "logit") -> Line:
    """The least-squares line through baselines, over the last axis.

    Args:
        clean, shifted: accuracies in (0, 1), ``[..., K]``, K >= 2; where all of ``clean`` are equal the slope
            is NaN.
        link: of both axes.

    Source: Taori et al. 2020, section 3; Miller et al. 2021 for probit.
    """
    x, y = linked(clean, link), linked(shifted, link)
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    apart = x - mean_x[..., None]
    spread = (apart**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(spread > 1e-12, (apart * (y - mean_y[..., None])).sum(-1) / spread, np.nan)
    return Line(slope, mean_y - slope * mean_x, link)


def explained(clean: ArrayLike, shifted: ArrayLike, fitted: Line) -> float:
    """R^2 of the line over its own baselines, on the linked axes; NaN where they do not vary."""
    x, y = linked(clean, fitted.link), linked(shifted, fitted.link)
    total = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - fitted.slope * x - fitted.intercept) ** 2).sum())
    return 1 - rest / total if total > 0 else float("nan")


def effective_robustness(clean: ArrayLike, shifted: ArrayLike, fitted: Line) -> Floats:
    """Accuracy under the shift beyond the line, in (-1, 1).

    Args:
        clean, shifted: accuracies of the model in (0, 1).
        fitted: through the baselines.

    Source: Taori et al. 2020, section 3.1, rho.
    """
    return np.asarray(shifted, np.float64) - fitted.expected(clean)


def corruption_error(errors: ArrayLike, reference: ArrayLike) -> float:
    """Mean corruption error: errors relative to a reference classifier's, averaged over corruptions.

    Args:
        errors: ``[K, S]`` in [0, 1], of K corruptions at S severities.
        reference: likewise, of the reference.

    Returns:
        1 where both are as bad; NaN where the reference makes no error at a corruption.

    Source: Hendrycks and Dietterich 2019, section 4.1, mCE.
    """
    ours = np.asarray(errors, np.float64).sum(1)
    theirs = np.asarray(reference, np.float64).sum(1)
    return float(np.mean(ours / theirs)) if (theirs > 0).all() else float("nan")


def read_points(path: str, shifts: Sequence[str]) -> Mapping[str, tuple[Floats, Floats]]:
    """Accuracies of reference models from a CSV file with columns ``clean`` and one a shift.

    Args:
        path: of the file; one row a model.
        shifts: the columns wanted; a cell may be empty.

    Returns:
        By shift the accuracies (clean, shifted) of the models that have both.

    Raises:
        ClipxError: the file cannot be read, has no such columns, or a cell is no share in [0, 1].
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise ClipxError(f"cannot read the points of {path}: {problem}") from problem
    columns = list(rows[0]) if rows else []
    lacking = [name for name in ("clean", *shifts) if name not in columns]
    if lacking:
        raise ClipxError(f"{path} has no column {', '.join(lacking)}", hint="columns: clean, and one a shift")
    found = {}
    for shift in shifts:
        pairs = [
            (_share(row["clean"], path), _share(row[shift], path))
            for row in rows
            if row["clean"] and row[shift]
        ]
        table = np.array(pairs, np.float64).reshape(-1, 2)
        found[shift] = (table[:, 0], table[:, 1])
    return found


def _share(cell: str, path: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ClipxError(f"{path} has the accuracy {cell!r}", hint="shares in [0, 1], not percent")
    return value
