"""The L2 sweep of a linear probe: clipx's shared path beside scikit-learn, cold at every strength.

Both fit the strengths of a search as CLIP's on the same features, one after another in one process
with as many threads; who goes first changes each time. At its default tolerance scikit-learn stops short of
the best objective, which is printed beside the times; --tolerance times it at a finer one too.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx.adapters.logistic import LogisticPath, Solution

AIM = 3.0
COARSE = tuple(10.0**power for power in range(-6, 7, 2))
STRENGTHS = (*COARSE, *(10 ** (sign * step / 8) for step in (8, 4, 2, 1) for sign in (-1, 1)))
"""What CLIP's search fits where C = 1 is best: seven of them two decades apart, then ever nearer."""


def features(rows: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of length 10, like a CLIP's before it normalises them, and labels: classes that overlap about a
    common direction, a spectrum that falls as a power."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, width + 1).float() ** -0.5
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    spread = 0.9 * torch.randn(rows, width, generator=generator)
    found = (0.4 * centres[labels] + spread) * scales + 3 * torch.randn(width, generator=generator) * scales
    return 10 * torch.nn.functional.normalize(found, dim=1), labels


def objective(
    weight: np.ndarray, bias: np.ndarray, rows: torch.Tensor, labels: torch.Tensor, c: float
) -> float:
    """Mean cross-entropy with its share of the penalty, in float64."""
    logits = rows.double() @ torch.from_numpy(weight).double().T + torch.from_numpy(bias).double()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss + np.square(weight, dtype=np.float64).sum() / (2 * c * len(rows)))


def measure(
    rows: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    strengths: Sequence[float],
    tolerance: float | None,
) -> list[dict[str, Any]]:
    """Seconds, iterations and the objective reached of both at every strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    began = time.monotonic()
    path = LogisticPath(rows, labels, classes)
    prepared = time.monotonic() - began
    x, y = rows.numpy(), labels.numpy()
    fits: dict[float, Solution] = {}
    table: list[dict[str, Any]] = []

    def ours(c: float) -> dict[str, Any]:
        near = min(fits, key=lambda known: abs(math.log(known / c))) if fits else None
        fits[c] = found = path.fit(c, start=None if near is None else fits[near])
        reached = objective(found.weight.numpy(), found.bias.numpy(), rows, labels, c)
        return {"iterations": found.iterations, "objective": reached}

    def theirs(c: float, tolerance: float) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=c, max_iter=1000, tol=tolerance).fit(x, y)
        reached = objective(model.coef_, model.intercept_, rows, labels, c)
        return {"iterations": int(model.n_iter_.max()), "objective": reached}

    contenders = {
        "clipx": ours,
        "scikit-learn": partial(theirs, tolerance=1e-4),
    }
    if tolerance is not None:
        contenders[f"scikit-learn, tol={tolerance:g}"] = partial(theirs, tolerance=tolerance)
    for place, c in enumerate(strengths):
        row: dict[str, Any] = {"c": c}
        turns = list(contenders)
        for name in turns if place % 2 else turns[::-1]:
            began = time.monotonic()
            found = contenders[name](c)
            row[name] = {"seconds": time.monotonic() - began, **found}
        row["clipx"]["seconds"] += prepared / len(strengths)
        table.append(row)
        for name in contenders:
            each = row[name]
            print(
                f"C {c:<8g} {name:<24} {each['seconds']:8.2f} s {each['iterations']:5d} iterations, "
                f"objective {each['objective']:.6f}",
                flush=True,
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--tolerance", type=float, help="a finer one for scikit-learn, too")
    parser.add_argument("--quick", action="store_true", help="a small size, only to show that it runs")
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.width, given.classes = 600, 16, 5
    rows, labels = features(given.rows, given.width, given.classes)
    table = measure(rows, labels, given.classes, given.strengths, given.tolerance)
    names = [name for name in table[0] if name != "c"]
    seconds = {name: sum(row[name]["seconds"] for row in table) for name in names}
    ratios = {name: seconds[name] / seconds["clipx"] for name in names}
    print(f"{given.rows} x {given.width}, {given.classes} classes")
    for name in names:
        print(f"{name:<24} {seconds[name]:8.1f} s, {ratios[name]:5.2f} times clipx (aim {AIM:g})")
    if given.json:
        given.json.write_text(
            json.dumps({"rows": table, "ratios": ratios}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
