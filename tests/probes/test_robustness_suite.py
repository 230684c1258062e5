"""The robustness suite on clouds whose shift, confidence and strangers are known."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.probes.protocol import Material, Shift
from clipx.probes.robustness_suite import RobustnessSuite, logit_subset
from clipx.tasks.calibration import brier, calibration, expected_error, reliability, temperature

CLASSES, WIDTH = 6, 16
FEW = {"sizes": [1, 2, 4, 8], "cs": [1.0, 100.0]}


def features(count, noise, seed, *, lift=0.0, labels=None, wide=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % CLASSES if labels is None else labels
    rows = functional.one_hot(truth.clamp_min(0), wide) + noise * torch.randn(
        count, wide, generator=generator
    )
    rows[:, -1] += lift
    return FeatureSet(
        image=functional.normalize(rows, dim=1),
        labels=truth,
        index=torch.arange(count),
        ids=[str(place) for place in range(count)],
        texts=[],
        pairs=torch.empty(0, 2, dtype=torch.long),
        text=None,
        skipped={},
        encoded=True,
    )


def material(**changes):
    given = {
        "measured": features(300, 0.35, 0),
        "train": features(240, 0.35, 1),
        "validation": features(120, 0.35, 2),
        "names": [f"class {place}" for place in range(CLASSES)],
        "classifier": torch.eye(CLASSES, WIDTH),
        "shifts": {"noisy": shift(features(300, 0.7, 3), restyled=True)},
        "logit_scale": 50.0,
        "title": "clouds",
    }
    return Material(**{**given, **changes})


def shift(given, columns=None, restyled=False):
    return Shift(given, [[place] for place in range(CLASSES)] if columns is None else columns, restyled)


def strangers(count=90):
    return features(count, 0.2, 9, labels=torch.full((count,), -1), lift=4.0)


def test_calibration_of_the_worked_case():
    confidence = torch.tensor([0.95, 0.9, 0.85, 0.6, 0.55, 0.3], dtype=torch.float64)
    correct = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    errors = {bins: expected_error(reliability(confidence, correct, bins=bins)) for bins in (15, 10, 2)}
    assert errors == pytest.approx({15: 0.241667, 10: 0.208333, 2: 0.191667}, abs=1e-6)
    mass = reliability(confidence, correct, bins=3, scheme="equal-mass")
    assert expected_error(mass) == pytest.approx(0.241667, abs=1e-6)
    shares = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]], dtype=torch.float64)
    truth = torch.tensor([0, 0, 1])
    assert float(brier(shares, truth).mean()) == pytest.approx(0.84)
    assert calibration(shares.log(), truth)["nll"].value == pytest.approx(1.191850, abs=1e-6)
    logits = torch.tensor([[2.0, 0.0]] * 4, dtype=torch.float64)
    assert temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / np.log(3), abs=1e-6)


def test_effective_robustness_is_what_lies_above_the_line_of_the_baselines():
    found = RobustnessSuite(**FEW)(material())
    metrics = found.metrics
    assert metrics["top1"].value > metrics["noisy_top1"].value == metrics["shift_top1"].value
    assert metrics["probe_top1"].value > metrics["probe_shift_top1"].value
    rows = dict(zip(found.tables["shifts"].columns, found.tables["shifts"].rows[0], strict=True))
    assert rows["r2"] > 0.8
    points = np.array([row[1:] for row in found.tables["baselines"].rows])
    assert len(points) == len(found.details["baselines"]) == 5
    assert (np.diff(points[:, 0])[[0, 1]] > 0).all()
    expected = 1 / (
        1
        + np.exp(-(rows["slope"] * np.log(rows["clean_top1"] / (1 - rows["clean_top1"])) + rows["intercept"]))
    )
    assert metrics["effective_robustness"].value == pytest.approx(rows["top1"] - expected)
    for name, each in metrics.items():
        assert each.low <= each.value <= each.high, name


def test_reference_models_from_a_file_take_the_place_of_the_baselines(tmp_path):
    file = tmp_path / "points.csv"
    file.write_text("clean,noisy\n0.6,0.1\n0.8,0.2\n0.9,0.3\n")
    low = RobustnessSuite(**FEW, points=str(file))(material())
    assert [row[1:] for row in low.tables["baselines"].rows] == [[0.6, 0.1], [0.8, 0.2], [0.9, 0.3]]
    own = RobustnessSuite(**FEW)(material())
    assert low.metrics["effective_robustness"].value > own.metrics["effective_robustness"].value + 0.1
    file.write_text("clean,noisy\n0.6,0.1\n0.8,0.2\n")
    with pytest.raises(ClipxError, match="2 models for noisy"):
        RobustnessSuite(**FEW, points=str(file))(material())


def test_a_shift_of_some_of_the_classes_is_compared_on_these_alone():
    two = features(80, 0.7, 5, labels=torch.arange(80) % 2)
    three = Shift(two, [[0], [1, 2]])
    found = RobustnessSuite(**FEW)(material(shifts={"part": three}))
    row = dict(zip(found.tables["shifts"].columns, found.tables["shifts"].rows[0], strict=True))
    assert (row["images"], row["classes"]) == (80, 2)
    given = material()
    kept = given.measured.labels < 3
    logits = logit_subset(given.measured.image[kept] @ given.classifier.T, [[0], [1, 2]])
    right = (logits.argmax(1) == given.measured.labels[kept].clamp_max(1)).double().mean()
    assert row["clean_top1"] == pytest.approx(min(float(right), 1 - 0.5 / int(kept.sum())))


def test_logits_of_a_class_are_the_largest_of_its_columns():
    logits = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]])
    assert logit_subset(logits, [[0, 2], [1]]).tolist() == [[3, 5], [4, 0]]


def test_temperature_scaling_lowers_the_error_of_an_overconfident_model():
    sharp = RobustnessSuite(**FEW)(
        material(logit_scale=200.0, measured=features(300, 0.6, 0), validation=features(240, 0.6, 2))
    )
    assert sharp.details["temperature"] > 1.5
    assert sharp.metrics["scaled_ece"].value < 0.7 * sharp.metrics["ece"].value


def test_strangers_are_told_and_known_images_with_other_names_are_not():
    given = material(outside={"far": strangers(), "same": features(200, 0.35, 8)})
    found = RobustnessSuite(**FEW, score="max-logit")(given)
    assert found.metrics["far_auroc"].value > 0.95
    assert found.metrics["far_fpr95"].value < 0.2
    assert found.metrics["same_auroc"].value == pytest.approx(0.5, abs=0.08)
    assert found.metrics["unseen_auroc"].value > 0.9
    assert found.details["known_classes"] == ["class 0", "class 1", "class 2"]
    table = {(row[0], row[1]): row[2] for row in found.tables["ood"].rows}
    assert len(table) == 3 * 8
    assert table["far", "max-logit"] == found.metrics["far_auroc"].value
    assert min(table["far", name] for name in ("mahalanobis", "knn")) > 0.85


def test_without_unknown_classes_there_is_no_figure_of_them(tmp_path):
    from clipx.reports.figures import save

    found = RobustnessSuite(**FEW, unseen=0)(material())
    assert not any("auroc" in name for name in found.metrics)
    assert set(found.figures) == {"robustness", "calibration"}
    every = RobustnessSuite(**FEW)(material(outside={"far": strangers()}))
    for name, figure in every.figures.items():
        assert save(figure, tmp_path / f"{name}.png").stat().st_size > 10_000
    assert len(every.figures["ood"].axes) == 4


def test_pictures_that_are_the_same_but_for_the_shift_are_drawn_together():
    same = material().measured
    paired = RobustnessSuite(**FEW)(material(shifts={"none": shift(same, restyled=True)})).metrics
    apart = RobustnessSuite(**FEW)(material(shifts={"none": shift(same)})).metrics
    assert paired["effective_robustness"].value == pytest.approx(0, abs=1e-9)
    assert paired["effective_robustness"].half_width < 1e-9 < apart["effective_robustness"].half_width


def test_where_all_baselines_are_as_accurate_the_rest_is_told_all_the_same():
    easy = {"measured": features(30, 0.0, 0), "train": features(60, 0.0, 1)}
    found = RobustnessSuite(**FEW)(material(**easy))
    assert found.details["without_a_line"] == ["noisy"]
    assert "effective_robustness" not in found.metrics
    assert (found.metrics["top1"].value, found.metrics["shift_top1"].value < 1) == (1, True)
    row = dict(zip(found.tables["shifts"].columns, found.tables["shifts"].rows[0], strict=True))
    assert row["effective_robustness"] is None


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"shifts": {}}, {}, "no shift to be robust to"),
        ({"shifts": {"clean": shift(features(60, 0.7, 3))}}, {}, "'clean' cannot be the name"),
        ({"outside": {"unseen": strangers()}}, {}, "'unseen' cannot be the name"),
        ({}, {"sizes": [1]}, "2 baselines make no line"),
        ({}, {"sizes": 1}, "2 baselines make no line"),
        ({}, {"unseen": 0.9}, "fewer than two would stay"),
        ({"shifts": {"far": shift(strangers())}}, {}, "no image of a split has a label"),
    ],
)
def test_what_cannot_be_measured(changes, settings, message):
    with pytest.raises(ClipxError, match=message):
        RobustnessSuite(**{**FEW, **settings})(material(**changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": [0]},
        {"cs": []},
        {"link": "log"},
        {"unseen": -0.1},
        {"unseen": 1.0},
        {"score": "msm"},
        {"temperature": 0},
        {"neighbours": 0},
        {"bins": 0},
        {"points": "no/such.csv"},
    ],
)
def test_wrong_settings_are_told_at_once(wrong):
    with pytest.raises(ClipxError):
        RobustnessSuite(**wrong)
