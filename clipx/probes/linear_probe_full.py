"""How well simple classifiers separate frozen features: logistic regression, neighbours, SGD heads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clipx.adapters.checks import check_choice, check_number
from clipx.adapters.logistic import LogisticPath, Solution
from clipx.adapters.search import hits
from clipx.data.fewshot import draw
from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.probes import many_heads
from clipx.probes.neighbours import TEMPERATURE, nearest, neighbour_scores
from clipx.probes.protocol import Material, Result, Table
from clipx.probes.sweep import coarse_to_fine, strengths
from clipx.tasks.classification import Outcomes, accuracy, confusion_matrix, outcomes, per_class
from clipx.tasks.intervals import Estimate, paired_difference, proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labelled = tuple[Tensor, Tensor]
_LARGEST_FIGURE = 60


BANKS = ("image", "raw", "pre_projection")
"""Banks of the feature store that hold the embedding too, which the zero-shot classifier needs."""


class Head(Protocol):
    """A classifier of frozen features whose settings are chosen on validation."""

    def fit(
        self, train: Labelled, validation: Labelled, classes: int, *, seed: int
    ) -> tuple[Any, dict[str, Any]]:
        """Returns what gives logits ``[M, C]`` of rows ``[M, D]``, and what was chosen, as plain data."""


class Logistic:
    """Logistic regression whose L2 strength is searched on validation, then fitted on train and validation.

    Args:
        cs: grid of inverse strengths, ascending; None for CLIP's 97 from 1e-6 to 1e6, of which 15 are fitted.
            ``C`` multiplies a sum over rows and is kept for the last fit, which has more of them.
        refit: fit train and validation together in the end; false: train alone.
        max_iter: of L-BFGS.
        tolerance: of the gradient.

    Raises:
        ClipxError: an empty grid, one that does not ascend from above 0, or a number out of range.

    Source: Radford et al. 2021, appendix A.3.
    """

    def __init__(
        self,
        cs: Sequence[float] | None = None,
        refit: bool = True,
        max_iter: int = 1000,
        tolerance: float = 1e-4,
    ) -> None:
        grid = strengths() if cs is None else [float(c) for c in cs]
        if not grid or grid[0] <= 0 or any(b <= a for a, b in itertools.pairwise(grid)):
            raise ClipxError(
                f"cs={list(grid)} is no grid of strengths", hint="numbers above 0, ascending: cs=[0.01,1,100]"
            )
        check_number("max_iter", max_iter, least=1)
        check_number("tolerance", tolerance, open_below=True)
        self.grid, self.refit, self.max_iter, self.tolerance = grid, refit, max_iter, tolerance
        self._coarsest = 16 if cs is None else 1

    def fit(
        self, train: Labelled, validation: Labelled, classes: int, *, seed: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """Search, then fit; nothing is drawn, ``seed`` is not used.

        Raises:
            ClipxError: as ``LogisticPath``.
        """
        path = LogisticPath(*train, classes)
        options = {"max_iter": self.max_iter, "tolerance": self.tolerance}
        fits: dict[int, Solution] = {}

        def right(place: int) -> float:
            start = min(fits, key=lambda known: abs(known - place)) if fits else None
            fits[place] = path.fit(
                self.grid[place],
                start=None if start is None else fits[start],
                **options,  # type: ignore[arg-type]
            )
            return int(hits(fits[place].logits(validation[0]), validation[1]))

        chosen = coarse_to_fine(len(self.grid), right, self._coarsest)
        final = fits[chosen]
        if self.refit:
            both = [torch.cat(parts) for parts in zip(train, validation, strict=True)]
            final = LogisticPath(both[0], both[1], classes).fit(self.grid[chosen], start=final, **options)  # type: ignore[arg-type]
        swept = {
            self.grid[place]: int(hits(fit.logits(validation[0]), validation[1])) / len(validation[1])
            for place, fit in sorted(fits.items())
        }
        found = {
            "c": self.grid[chosen],
            "fits": len(fits),
            "iterations": sum(fit.iterations for fit in fits.values()) + final.iterations * self.refit,
            "unconverged": sum(not fit.converged for fit in [*fits.values(), final]),
            "gradient": final.gradient,
            "validation": swept,
        }
        return final.logits, found


class Neighbours:
    """Weighted k nearest neighbours in cosine; k is chosen on validation.

    Args:
        ks: numbers of neighbours to choose from.
        temperature: of the weights.

    Raises:
        ClipxError: no number, or one out of range.

    Source: Oquab et al. 2023 (DINOv2), section 7 and ``eval/knn.py``.
    """

    def __init__(self, ks: Sequence[int] = (10, 20, 100, 200), temperature: float = TEMPERATURE) -> None:
        if not ks:
            raise ClipxError("ks=[] leaves no number of neighbours to choose from", hint="ks=[10,20]")
        for k in ks:
            check_number("ks", k, least=1)
        check_number("temperature", temperature, open_below=True)
        self.ks, self.temperature = sorted(set(ks)), temperature

    def fit(
        self, train: Labelled, validation: Labelled, classes: int, *, seed: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """Choose k; nothing is drawn, ``seed`` is not used.

        Raises:
            ClipxError: a k is more than there are training rows.
        """

        def scores(rows: Tensor) -> dict[int, Tensor]:
            similar, places = nearest(rows, train[0], self.ks[-1])
            return neighbour_scores(similar, train[1][places], self.ks, classes, self.temperature)

        right = {k: int(hits(each, validation[1])) for k, each in scores(validation[0]).items()}
        chosen = max(self.ks, key=right.__getitem__)  # of equals the fewest
        found = {"k": chosen, "validation": {k: count / len(validation[1]) for k, count in right.items()}}
        return (lambda rows: scores(rows)[chosen].clamp_min(1e-30).log()), found


class StochasticHeads:
    """Linear heads by SGD, one a learning rate, of which the best on validation counts; for large sets.

    Args:
        rates: learning rates for 256 rows a step.
        steps: of every head.
        batch_size: rows a step.

    Raises:
        ClipxError: no rate, or a number out of range.

    Source: Oquab et al. 2023 (DINOv2), section 7 and ``eval/linear.py``.
    """

    def __init__(
        self, rates: Sequence[float] = many_heads.RATES, steps: int = 12_500, batch_size: int = 128
    ) -> None:
        if not rates:
            raise ClipxError("rates=[] leaves no learning rate to choose from", hint="rates=[0.001,0.01,0.1]")
        for rate in rates:
            check_number("rates", rate, open_below=True)
        check_number("steps", steps, least=1)
        check_number("batch_size", batch_size, least=1)
        self.rates, self.steps, self.batch_size = list(rates), steps, batch_size

    def fit(
        self, train: Labelled, validation: Labelled, classes: int, *, seed: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """Train all heads at once, and choose one."""
        options = {"rates": self.rates, "steps": self.steps, "batch_size": self.batch_size, "seed": seed}
        weights, biases = many_heads.train_heads(*train, classes, **options)  # type: ignore[arg-type]
        right = [
            int(hits(torch.addmm(bias, validation[0], weight.T), validation[1]))
            for weight, bias in zip(weights, biases, strict=True)
        ]
        best = max(range(len(right)), key=right.__getitem__)
        shares = {rate: count / len(validation[1]) for rate, count in zip(self.rates, right, strict=True)}
        found = {"rate": self.rates[best], "validation": shares}
        return (lambda rows: torch.addmm(biases[best], rows, weights[best].T)), found


class LinearProbeFull:
    """Frozen features under simple classifiers, learnt from the whole training split, beside zero-shot.

    The first head gives ``top1`` and its kin and the learning curve; ``difference`` is its top-1 above that
    of the zero-shot classifier.

    Args:
        heads: by name; settings are chosen on validation and never on test.
        bank: of the feature store: ``pre_projection``, the rows that the tower's projection is given (CLIP);
            ``raw``, projected; ``image``, projected unit rows.
        curve: images a class of the learning curve; validation stays whole for it.

    Raises:
        ClipxError: no head, an unknown bank, or a number out of range.

    Source: Radford et al. 2021, section 3.2 and appendix A.
    """

    needs = ("train", "validation", "classes")
    any_comparison = True

    def __init__(
        self, heads: dict[str, Head], bank: str = "pre_projection", curve: Sequence[int] = (1, 2, 4, 8, 16)
    ) -> None:
        if not heads:
            raise ClipxError("there is no head to fit", hint="probe.heads.logistic, .neighbours or .sgd")
        check_choice("bank", bank, BANKS)
        for shots in curve:
            check_number("curve", shots, least=1)
        self.heads, self.bank, self.curve = heads, bank, sorted(set(curve))

    def __call__(self, material: Material) -> Result:
        """Fit every head and measure it.

        Raises:
            ClipxError: a split without labels, fewer than two classes, or what a head raises.
        """
        assert material.train is not None
        assert material.validation is not None
        assert material.classifier is not None
        classes = len(material.names)
        splits = [
            self._labelled(each, material.pooled)
            for each in (material.train, material.validation, material.measured)
        ]
        (train, validation, test) = splits
        seen: dict[str, Outcomes] = {}
        found: dict[str, dict[str, Any]] = {}
        for name, head in self.heads.items():
            logits, found[name] = head.fit(train, validation, classes, seed=material.seed)
            seen[name] = outcomes(logits(test[0]), test[1])
        unit = material.measured.image[material.measured.labels != UNLABELLED]
        zero_shot = outcomes(material.score(unit.float(), material.classifier), test[1])
        first = next(iter(self.heads))
        estimates = dict(accuracy(seen[first]))
        for name in list(self.heads)[1:]:
            estimates[f"{name}_top1"] = accuracy(seen[name])["top1"]
        estimates["zero_shot_top1"] = accuracy(zero_shot)["top1"]
        estimates["difference"] = paired_difference(seen[first].ranks < 1, zero_shot.ranks < 1)
        curve = self._curve(train, validation, test, classes, material)
        lengths = torch.linalg.vector_norm(train[0], dim=1)
        details = {
            "bank": self.bank,
            "train_images": len(train[1]),
            "validation_images": len(validation[1]),
            "width": train[0].shape[1],
            "row_length": {"mean": float(lengths.mean()), "std": float(lengths.std())},
            "heads": {
                name: {key: value for key, value in each.items() if key != "validation"}
                for name, each in found.items()
            },
        }
        return Result(
            estimates,
            details,
            self._tables(seen, found, curve, material),
            self._figures(seen, found, curve, len(train[1]) / classes, estimates, material),
        )

    def _labelled(self, features: FeatureSet, pooled: Callable[[Tensor], Tensor]) -> Labelled:
        if self.bank == "image":
            rows = pooled(features.image)
        elif self.bank == "raw":
            assert features.norms is not None
            rows = features.image * features.norms[:, None]
        else:
            assert features.pre is not None
            rows = features.pre
        kept = features.labels != UNLABELLED
        if not kept.any():
            raise ClipxError("no image of a split has a label: there is nothing to learn or to measure")
        return rows[kept].float(), features.labels[kept]

    def _curve(
        self, train: Labelled, validation: Labelled, test: Labelled, classes: int, material: Material
    ) -> dict[int, Estimate]:
        """Top-1 of the first head after so many images a class, as far as every class has them."""
        head, curve = next(iter(self.heads.values())), {}
        fewest = int(train[1].bincount(minlength=classes).min())
        for shots in [each for each in self.curve if each <= fewest]:
            drawn = draw(
                train[1].numpy(),
                shots,
                classes=classes,
                dataset=material.title,
                seed=material.seed,
                nested=True,
            )
            places = torch.from_numpy(drawn.indices)
            few = train[0][places], train[1][places]
            try:
                logits, _ = _without_refit(head).fit(few, validation, classes, seed=material.seed)
            except ClipxError:
                continue  # so few rows do not hold as many neighbours
            right = int(hits(logits(test[0]), test[1]))
            curve[shots] = proportion(right, len(test[1]))
        return curve

    def _tables(
        self,
        seen: dict[str, Outcomes],
        found: dict[str, dict[str, Any]],
        curve: dict[int, Estimate],
        material: Material,
    ) -> dict[str, Table]:
        rows = [
            [name, value, share]
            for name, each in found.items()
            for value, share in each["validation"].items()
        ]
        first = next(iter(seen))
        classes = [
            [row.name, row.support, row.recall, row.precision, row.confused_with]
            for row in per_class(seen[first], list(material.names))
        ]
        return {
            "sweep": Table(["head", "value", "validation_accuracy"], rows),
            "per_class": Table(["class", "support", "recall", "precision", "confused_with"], classes),
            "learning_curve": Table(
                ["shots", "top1", "low", "high"], [[shots, *each] for shots, each in curve.items()]
            ),
        }

    def _figures(
        self,
        seen: dict[str, Outcomes],
        found: dict[str, dict[str, Any]],
        curve: dict[int, Estimate],
        everything: float,
        estimates: dict[str, Estimate],
        material: Material,
    ) -> dict[str, Figure]:
        from clipx.reports.figures import confusion
        from clipx.reports.probe_figures import sweep_and_curve

        first = next(iter(seen))
        tops = {name: accuracy(each)["top1"] for name, each in seen.items()}
        figures = {
            "probe": sweep_and_curve(
                {name: each["validation"] for name, each in found.items()},
                curve={**{float(shots): each for shots, each in curve.items()}, everything: tops[first]},
                tops={**tops, "zero-shot": estimates["zero_shot_top1"]},
                title=f"{material.title}: frozen features",
            )
        }
        if len(material.names) <= _LARGEST_FIGURE:
            figures["confusion"] = confusion(
                confusion_matrix(seen[first]), list(material.names), title=f"{material.title}: {first}"
            )
        return figures


def _without_refit(head: Head) -> Head:
    """A head that learns from what it is told to alone: the shots of a learning curve are all there is."""
    if isinstance(head, Logistic) and head.refit:
        other = Logistic(refit=False, max_iter=head.max_iter, tolerance=head.tolerance)
        other.grid, other._coarsest = head.grid, head._coarsest
        return other
    return head
