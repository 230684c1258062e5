"""How a zero-shot classifier bears a change of its data: shifts, calibration, images of no known class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.adapters.checks import check_choice, check_number
from clipx.data.fewshot import draw
from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.probes import ood_scores, shift_line
from clipx.probes.linear_probe_full import Labelled, Logistic
from clipx.probes.protocol import Material, Result, Shift
from clipx.probes.robustness_report import Floats, Shifted, figures, tables
from clipx.probes.selective import selective
from clipx.tasks.calibration import Reliability, calibration, reliability, temperature
from clipx.tasks.intervals import Estimate, percentile_interval, proportion, resampled
from clipx.tasks.ood import detection

Classifiers = Mapping[str, Any]
_DRAWS = 1000
_LEAST_BASELINES = 3
_UNSEEN = "unseen"
_TAKEN = ("clean", "probe", "shift", "probe_shift")


class RobustnessSuite:
    """Accuracy under shifts, effective robustness, calibration, selective risk, out-of-distribution scores.

    The baselines of effective robustness are linear probes of the same features, learnt from the training
    split without any shift, from few images to all; or reference models from a file. Figures of effective
    robustness over different baselines cannot be compared.

    Args:
        sizes: images a class that the baselines learn from, beside all.
        cs: inverse L2 strengths of a baseline, of which validation chooses.
        link: of the axes on which baselines lie on a line: ``logit`` or ``probit``.
        points: CSV file of reference models in place of the baselines: columns ``clean`` and one a shift,
            accuracies in [0, 1].
        unseen: share of the classes, the last ones, that are left out of the names, so that their images are
            of no known class; 0 for none.
        score: whose AUROC and FPR95 are the metrics; all of them are in the table.
        temperature: of the softmax and the energy of cosines.
        neighbours: k of the distance to training images.
        bins: of confidence.

    Raises:
        ClipxError: an argument that is out of range or names nothing.

    Source: Taori et al. 2020; Wortsman et al. 2022 (shifts); Guo et al. 2017 (calibration); Ming et al. 2022.
    """

    needs = ("train", "validation", "classes", "shifts", "outside")
    bank = "image"

    def __init__(
        self,
        sizes: Sequence[int] | int = (1, 2, 4, 8, 16, 32, 64),
        cs: Sequence[float] = (1.0, 10.0, 100.0, 1e3, 1e4),
        link: shift_line.Link = "logit",
        points: str | None = None,
        unseen: float = 0.5,
        score: str = "mcm",
        temperature: float = ood_scores.TEMPERATURE,
        neighbours: int = 50,
        bins: int = 15,
    ) -> None:
        sizes = [sizes] if isinstance(sizes, int) else sizes
        for size in sizes:
            check_number("sizes", size, least=1)
        check_choice("link", link, shift_line.LINKS)
        check_choice("score", score, ood_scores.SCORES)
        check_number("unseen", unseen, most=0.9)
        check_number("temperature", temperature, open_below=True)
        check_number("neighbours", neighbours, least=1)
        check_number("bins", bins, least=1)
        if points is not None and not Path(points).is_file():
            raise ClipxError(f"there is no file {points}", hint="probe.points=FILE.csv of reference models")
        self.sizes, self.link, self.points, self.unseen = sorted(set(sizes)), link, points, unseen
        self.score, self.temperature, self.neighbours, self.bins = score, temperature, neighbours, bins
        self.head = Logistic(cs, refit=False)

    def __call__(self, material: Material) -> Result:
        """Measure.

        Raises:
            ClipxError: no shift, too few baselines, a split without labels, or what a part raises.
        """
        assert material.train is not None
        assert material.validation is not None
        assert material.classifier is not None
        if not material.shifts:
            raise ClipxError(
                "there is no shift to be robust to", hint="styles=[sketch,blur], or +data@shifts.NAME=CARD"
            )
        taken = [name for name in material.shifts if name in _TAKEN]
        taken += [name for name in material.outside if name == _UNSEEN]
        if taken:
            raise ClipxError(
                f"{taken[0]!r} cannot be the name of other data: figures have it", hint="another one"
            )
        given = None if self.points is None else shift_line.read_points(self.points, list(material.shifts))
        known = _known_classes(len(material.names), self.unseen)
        zero_shot = _zero_shot(material)
        baselines = self._baselines(material)
        classifiers = {"zero-shot": zero_shot, **baselines}
        truth = _labelled(material.measured)
        held = _labelled(material.validation)
        heat = temperature(zero_shot(held[0]), held[1])
        logits = zero_shot(truth[0])
        sure = selective(*_confidence(logits, truth[1]), seed=material.seed)
        full = list(baselines)[-1]
        calm = {"clean": calibration(logits, truth[1], bins=self.bins, seed=material.seed)}
        cool = {"clean": calibration(logits / heat, truth[1], bins=self.bins, seed=material.seed)}
        shifted = {
            name: self._shifted(name, shift, classifiers, material, heat, given)
            for name, shift in material.shifts.items()
        }
        calm |= {name: each.calibration for name, each in shifted.items()}
        cool |= {name: each.scaled for name, each in shifted.items()}
        scores, found = self._outside(material, known)

        estimates = {
            "top1": _top1(logits, truth[1]),
            "probe_top1": _top1(baselines[full](truth[0]), truth[1]),
            **_means(shifted),
            **{f"{name}_top1": each.estimates["top1"] for name, each in shifted.items()},
            **{name: calm["clean"][name] for name in ("ece", "nll", "brier")},
            "scaled_ece": cool["clean"]["ece"],
            "shift_ece": _averaged([each.calibration["ece"] for each in shifted.values()]),
            "shift_scaled_ece": _averaged([each.scaled["ece"] for each in shifted.values()]),
            **sure,
        }
        for outside, by_score in found.items():
            estimates |= {f"{outside}_{name}": by_score[self.score][name] for name in ("auroc", "fpr95")}
        error = shift_line.corruption_error(
            [[each.errors[0]] for each in shifted.values()], [[each.errors[1]] for each in shifted.values()]
        )
        details = {
            "baselines": list(baselines) if given is None else str(self.points),
            "link": self.link,
            "without_a_line": [
                name for name, each in shifted.items() if "effective_robustness" not in each.estimates
            ],
            "temperature": heat,
            "r2": {name: each.r2 for name, each in shifted.items()},
            "relative_corruption_error": None if math.isnan(error) else error,
            "known_classes": [material.names[place] for place in known] if found else list(material.names),
            "ood_score": self.score,
            "logit_scale": material.logit_scale,
        }
        diagrams = {
            "clean": _diagram(logits, truth[1], self.bins),
            "clean, scaled": _diagram(logits / heat, truth[1], self.bins),
        }
        under = [_restricted(zero_shot, shift) for shift in material.shifts.values()]
        every = [torch.cat(parts) for parts in zip(*map(_sureness, under), strict=True)]
        diagrams["shifted"] = reliability(every[0], every[1], bins=self.bins)
        return Result(
            estimates,
            details,
            tables(shifted, calm, cool, diagrams, found),
            figures(shifted, diagrams, scores, found, estimates, score=self.score, title=material.title),
        )

    def _baselines(self, material: Material) -> dict[str, Any]:
        """Linear probes of growing training sets, by the number of images they learnt from."""
        assert material.train is not None
        assert material.validation is not None
        train, validation = _labelled(material.train), _labelled(material.validation)
        classes, fitted = len(material.names), {}
        for size in [*self.sizes, None]:
            options = {"classes": classes, "dataset": material.title, "seed": material.seed, "nested": True}
            places = torch.from_numpy(draw(train[1].numpy(), size, **options).indices)  # type: ignore[arg-type]
            name = f"probe of {len(places)} images"
            if name in fitted:  # no class has more
                continue
            rows = train[0][places].double(), train[1][places]
            fitted[name], _ = self.head.fit(rows, validation, classes)
        if len(fitted) < _LEAST_BASELINES and self.points is None:
            raise ClipxError(
                f"{len(fitted)} baselines make no line", hint="three or more: probe.sizes=[1,2,4]"
            )
        return fitted

    def _shifted(
        self,
        name: str,
        shift: Shift,
        classifiers: Classifiers,
        material: Material,
        heat: float,
        given: Mapping[str, tuple[Floats, Floats]] | None,
    ) -> Shifted:
        columns = [list(each) for each in shift.columns]
        truth = _labelled(shift.features)
        clean = _labelled(material.measured)
        within = torch.from_numpy(_class_of_column(columns, len(material.names)))[clean[1]]
        clean = clean[0][within != UNLABELLED], within[within != UNLABELLED]
        if not len(clean[1]):
            raise ClipxError(f"no image without the shift {name} is of its classes: nothing to compare with")
        here = _right(classifiers, clean, columns)
        there = _right(classifiers, truth, columns)
        # Pictures that are the same but for the shift are drawn together: the same seed over the same number.
        same = shift.restyled and len(truth[1]) == len(clean[1])
        before = _drawn(here, material.seed)
        after = _drawn(there, material.seed + (not same))
        accuracies = [
            shift_line.bounded(each, size)
            for each, size in (
                (here.mean(0), len(here)),
                (there.mean(0), len(there)),
                (before, len(here)),
                (after, len(there)),
            )
        ]
        x, y, drawn_x, drawn_y = accuracies
        if given is None:
            points, drawn_points = (x[1:], y[1:]), (drawn_x[:, 1:], drawn_y[:, 1:])
        else:
            sides = given[name]
            if len(sides[0]) < _LEAST_BASELINES:
                raise ClipxError(
                    f"{self.points} has {len(sides[0])} models for {name}", hint="three or more make a line"
                )
            points = shift_line.bounded(sides[0], len(here)), shift_line.bounded(sides[1], len(there))
            drawn_points = points
        fitted = shift_line.line(*points, self.link)
        rho = float(shift_line.effective_robustness(x[0], y[0], fitted))
        drawn_line = shift_line.line(*drawn_points, self.link)
        rho_draws = shift_line.effective_robustness(drawn_x[:, 0], drawn_y[:, 0], drawn_line)
        logits = _on_columns(classifiers["zero-shot"](truth[0]), columns)
        return Shifted(
            estimates={
                "top1": proportion(int(there[:, 0].sum()), len(there)),
                "probe_top1": proportion(int(there[:, -1].sum()), len(there)),
                # Baselines that are all as accurate without the shift lie on no line.
                **({"effective_robustness": percentile_interval(rho, rho_draws)} if np.isfinite(rho) else {}),
            },
            draws=np.stack([after[:, 0], after[:, -1], rho_draws], 1),
            images=len(there),
            classes=len(columns),
            line=fitted,
            r2=shift_line.explained(*points, fitted),
            points=points,
            clean=float(x[0]),
            calibration=calibration(logits, truth[1], bins=self.bins, seed=material.seed),
            scaled=calibration(logits / heat, truth[1], bins=self.bins, seed=material.seed),
            errors=(1 - float(there[:, 0].mean()), 1 - float(there[:, -1].mean())),
        )

    def _outside(
        self, material: Material, known: list[int]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, dict[str, dict[str, Estimate]]]]:
        """The chosen score inside and outside, and detection by all scores, by what is outside."""
        sides: dict[str, tuple[list[int], Tensor, Tensor]] = {}
        rows, labels = _labelled(material.measured)
        if len(known) < len(material.names):
            inside = torch.isin(labels, torch.tensor(known))
            if not inside.any() or inside.all():
                raise ClipxError(
                    "no image is of a class left out, or none of one kept",
                    hint="probe.unseen=0, or a larger limit",
                )
            sides[_UNSEEN] = (known, rows[inside], rows[~inside])
        for name, features in material.outside.items():
            sides[name] = (list(range(len(material.names))), rows, features.image.double())
        scores, found = {}, {}
        for name, (classes, inside_rows, outside_rows) in sides.items():
            of = {
                score: (
                    self._score(score, inside_rows, classes, material),
                    self._score(score, outside_rows, classes, material),
                )
                for score in ood_scores.SCORES
            }
            found[name] = {score: detection(*each, seed=material.seed) for score, each in of.items()}
            scores[name] = of[self.score]
        return scores, found

    def _score(self, name: str, rows: Tensor, classes: list[int], material: Material) -> Tensor:
        assert material.train is not None
        assert material.classifier is not None
        if name not in ("mahalanobis", "knn"):
            cosines = rows @ material.classifier[classes].double().T
            return ood_scores.score(name, cosines, material.logit_scale, self.temperature)
        train, labels = _labelled(material.train)
        kept = torch.isin(labels, torch.tensor(classes))
        if name == "knn":
            return ood_scores.neighbour(rows, train[kept], self.neighbours)
        return ood_scores.mahalanobis(rows, train[kept], labels[kept])


def logit_subset(logits: Tensor, columns: Sequence[Sequence[int]]) -> Tensor:
    """Logits of other classes, each the largest of the columns that it has: ``[N, K]``.

    Args:
        logits: ``[N, C]``.
        columns: of each of K classes, one column or several.

    Source: Taori et al. 2020 (subsets); Barbu et al. 2019 (ObjectNet has several columns a class).
    """
    return torch.stack([logits[:, list(each)].amax(1) for each in columns], 1)


def _on_columns(logits: Tensor, columns: list[list[int]]) -> Tensor:
    own = [[place] for place in range(logits.shape[1])]
    return logits if columns == own else logit_subset(logits, columns)


def _known_classes(count: int, share: float) -> list[int]:
    """The first classes, of which the last share is left out; two or more stay."""
    if share == 0:
        return list(range(count))
    left = max(1, round(share * count))
    if count - left < 2:
        raise ClipxError(
            f"of {count} classes none can be left out: fewer than two would stay",
            hint="probe.unseen=0 leaves none out",
        )
    return list(range(count - left))


def _zero_shot(material: Material) -> Any:
    assert material.classifier is not None
    weights = material.classifier.double() * material.logit_scale
    return lambda rows: rows.double() @ weights.T


def _labelled(features: FeatureSet) -> Labelled:
    kept = features.labels != UNLABELLED
    if not kept.any():
        raise ClipxError("no image of a split has a label: there is nothing to learn or to measure")
    return features.image[kept].double(), features.labels[kept]


def _class_of_column(columns: Sequence[Sequence[int]], count: int) -> NDArray[np.int64]:
    """The class of a shift that each of the ``count`` classes is part of, -1 for none."""
    of = np.full(count, UNLABELLED, np.int64)
    for place, own in enumerate(columns):
        of[list(own)] = place
    return of


def _right(classifiers: Classifiers, truth: Labelled, columns: list[list[int]]) -> Floats:
    """Whether each classifier is right on each row: ``[N, classifiers]``."""
    rows, labels = truth
    return np.stack(
        [
            (_on_columns(logits(rows), columns).argmax(1) == labels).double().numpy()
            for logits in classifiers.values()
        ],
        1,
    )


def _drawn(right: Floats, seed: int) -> Floats:
    return resampled(lambda weights: weights @ right / len(right), len(right), seed=seed, draws=_DRAWS)


def _confidence(logits: Tensor, labels: Tensor) -> tuple[Floats, NDArray[np.bool_]]:
    sure, right = _sureness((logits, labels))
    return sure.numpy(), right.numpy()


def _sureness(seen: Labelled) -> tuple[Tensor, Tensor]:
    sure, guessed = seen[0].softmax(1).max(1)
    return sure, guessed == seen[1]


def _restricted(zero_shot: Any, shift: Shift) -> Labelled:
    rows, labels = _labelled(shift.features)
    return _on_columns(zero_shot(rows), [list(each) for each in shift.columns]), labels


def _diagram(logits: Tensor, labels: Tensor, bins: int) -> Reliability:
    return reliability(*_sureness((logits, labels)), bins=bins)


def _top1(logits: Tensor, labels: Tensor) -> Estimate:
    return proportion(int((logits.argmax(1) == labels).sum()), len(labels))


def _means(shifted: Mapping[str, Shifted]) -> dict[str, Estimate]:
    """Means over the shifts, with the intervals of the joint draws; of what is known of each."""
    draws = np.mean([each.draws[:, :2] for each in shifted.values()], axis=0)
    top1, probe = (
        float(np.mean([each.estimates[name].value for each in shifted.values()]))
        for name in ("top1", "probe_top1")
    )
    found = {
        "shift_top1": percentile_interval(top1, draws[:, 0]),
        "probe_shift_top1": percentile_interval(probe, draws[:, 1]),
        "shift_difference": percentile_interval(top1 - probe, draws[:, 0] - draws[:, 1]),
    }
    lined = [each for each in shifted.values() if "effective_robustness" in each.estimates]
    if lined:
        rho = float(np.mean([each.estimates["effective_robustness"].value for each in lined]))
        found["effective_robustness"] = percentile_interval(
            rho, np.mean([each.draws[:, 2] for each in lined], axis=0)
        )
    return found


def _averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean, with the mean of the ends: as wide as if all erred the same way."""
    return Estimate(*(float(np.mean(part)) for part in zip(*estimates, strict=True)))
