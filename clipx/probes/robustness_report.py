"""What the robustness suite found, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipx.probes import shift_line
from clipx.probes.protocol import Table
from clipx.tasks.calibration import Reliability
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shifted:
    """Under one shift: estimates of the zero-shot classifier, and what the line and the baselines gave."""

    estimates: dict[str, Estimate]
    draws: Floats
    """``[R, 3]``: bootstrap draws of top-1, of the probe's top-1, and of the effective robustness."""
    images: int
    classes: int
    line: shift_line.Line
    r2: float
    points: tuple[Floats, Floats]
    clean: float
    calibration: dict[str, Estimate]
    scaled: dict[str, Estimate]
    errors: tuple[float, float]


def tables(
    shifted: Mapping[str, Shifted],
    calm: Mapping[str, Mapping[str, Estimate]],
    cool: Mapping[str, Mapping[str, Estimate]],
    diagrams: Mapping[str, Reliability],
    found: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
) -> dict[str, Table]:
    """The tables of a report.

    Args:
        shifted: by shift.
        calm, cool: calibration metrics before and after temperature scaling, by what the images are.
        diagrams: reliability by what the images are.
        found: detection metrics, by what is outside and by score.
    """
    shifts = [
        [
            name,
            each.images,
            each.classes,
            each.clean,
            *each.estimates["top1"],
            each.estimates["probe_top1"].value,
            *each.estimates.get("effective_robustness", (None, None, None)),
            float(each.line.slope),
            float(each.line.intercept),
            each.r2,
            not each.points[0].min() <= each.clean <= each.points[0].max(),
        ]
        for name, each in shifted.items()
    ]
    columns = ["shift", "images", "classes", "clean_top1", "top1", "low", "high", "probe_top1"]
    columns += ["effective_robustness", "low", "high", "slope", "intercept", "r2", "extrapolated"]
    names = list(next(iter(calm.values())))
    return {
        "shifts": Table(columns, shifts),
        "baselines": Table(
            ["shift", "clean_top1", "top1"],
            [
                [name, float(x), float(y)]
                for name, each in shifted.items()
                for x, y in zip(*each.points, strict=True)
            ],
        ),
        "calibration": Table(
            ["images", *names, *(f"scaled_{name}" for name in names)],
            [
                [
                    name,
                    *(calm[name][key].value for key in names),
                    *(cool[name][key].value for key in names),
                ]
                for name in calm
            ],
        ),
        "reliability": Table(
            ["images", "bin", "count", "confidence", "accuracy"],
            [
                [name, place + 1, int(count), float(confidence), float(accuracy)]
                for name, each in diagrams.items()
                for place, (count, confidence, accuracy) in enumerate(
                    zip(each.count, each.confidence, each.accuracy, strict=True)
                )
            ],
        ),
        "ood": Table(
            ["outside", "score", "auroc", "low", "high", "fpr95", "aupr_in", "aupr_out"],
            [
                [
                    outside,
                    score,
                    *each["auroc"],
                    *(each[name].value for name in ("fpr95", "aupr_in", "aupr_out")),
                ]
                for outside, by_score in found.items()
                for score, each in by_score.items()
            ],
        ),
    }


def figures(
    shifted: Mapping[str, Shifted],
    diagrams: Mapping[str, Reliability],
    scores: Mapping[str, tuple[Tensor, Tensor]],
    found: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    estimates: Mapping[str, Estimate],
    *,
    score: str,
    title: str,
) -> dict[str, Figure]:
    """The figures of a report.

    Args:
        shifted, diagrams, found: as ``tables`` takes them.
        scores: the chosen score inside and outside, by what is outside.
        estimates: top1 and probe_top1 without a shift.
        score: name of the chosen one.
        title: of each.
    """
    from clipx.reports.robustness_figures import effective, outside, reliabilities

    drawn = {
        "robustness": effective(
            {
                name: (*each.points, each.clean, each.estimates["top1"].value)
                for name, each in shifted.items()
            },
            {name: each.line for name, each in shifted.items()},
            {
                name: each.estimates["effective_robustness"]
                for name, each in shifted.items()
                if "effective_robustness" in each.estimates
            },
            {
                "clean": (estimates["top1"], estimates["probe_top1"]),
                **{n: (e.estimates["top1"], e.estimates["probe_top1"]) for n, e in shifted.items()},
            },
            title=title,
        ),
        "calibration": reliabilities(diagrams, title=title),
    }
    if scores:
        drawn["ood"] = outside(
            {name: (a.numpy(), b.numpy()) for name, (a, b) in scores.items()},
            {name: {score: each["auroc"] for score, each in of.items()} for name, of in found.items()},
            score=score,
            title=title,
        )
    return drawn
