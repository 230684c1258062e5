"""Risk of the surest answers."""

import numpy as np
import pytest

from clipx.probes.selective import selective


def test_the_risk_of_a_small_case():
    found = selective([0.95, 0.9, 0.85, 0.6, 0.55], [1, 1, 0, 1, 0])
    assert found["aurc"].value == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 4, 2 / 5]))
    assert found["selective_risk"].value == pytest.approx(1 / 4)
    assert all(each.low <= each.value <= each.high for each in found.values())


def test_equal_confidences_share_their_errors_whatever_the_order():
    sure, right = np.array([0.9, 0.5, 0.5, 0.5]), np.array([1, 0, 1, 1])
    order = [3, 1, 0, 2]
    first, second = selective(sure, right), selective(sure[order], right[order])
    assert first["aurc"].value == pytest.approx(second["aurc"].value)
    assert first["aurc"].value == pytest.approx(np.mean([0, 1 / 6, 2 / 9, 1 / 4]))


def test_confidence_that_tells_right_from_wrong_lowers_the_risk():
    right = np.arange(200) % 4 > 0
    noise = np.random.default_rng(0).uniform(size=200)
    good, poor = selective(right + noise / 2, right), selective(noise, right)
    assert good["selective_risk"].value < 0.1 < 0.2 < poor["selective_risk"].value
    assert good["aurc"].high < poor["aurc"].low
