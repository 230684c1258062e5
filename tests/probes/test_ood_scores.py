"""Scores of what is of no known class, against their formulas and on worked cases."""

import pytest
import torch

from clipx.errors import ClipxError
from clipx.probes.ood_scores import SCORES, mahalanobis, neighbour, score
from clipx.tasks.ood import detection

COSINES = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.35, 0.3], [0.2, 0.2, 0.2]], dtype=torch.float64)


def test_the_worked_case_of_detection():
    inside, outside = [0.9, 0.8, 0.7, 0.6], [0.75, 0.5, 0.4, 0.3]
    found = detection(inside, outside, draws=2)
    assert (found["auroc"].value, found["fpr95"].value) == (0.875, 0.25)
    turned = detection([-each for each in outside], [-each for each in inside], draws=2)
    assert turned["fpr95"].value == 0.5  # with what is outside as the positives


def test_scores_of_cosines_are_their_formulas():
    exps = COSINES.exp()
    shares = exps / exps.sum(1, keepdim=True)
    hot = (COSINES / 0.5).exp()
    expected = {
        "mcm": shares.max(1).values,
        "msp": ((50 * COSINES).exp() / (50 * COSINES).exp().sum(1, keepdim=True)).max(1).values,
        "max-logit": torch.tensor([0.9, 0.4, 0.2], dtype=torch.float64),
        "energy": exps.sum(1).log(),
        "entropy": (shares * shares.log()).sum(1),
        "variance": (shares**2).mean(1) - shares.mean(1) ** 2,
    }
    for name, values in expected.items():
        torch.testing.assert_close(score(name, COSINES, 50.0), values)
    torch.testing.assert_close(score("energy", COSINES, 50.0, 0.5), 0.5 * hot.sum(1).log())
    assert expected.keys() | {"mahalanobis", "knn"} == set(SCORES)
    with pytest.raises(ClipxError, match="'nothing'"):
        score("nothing", COSINES, 50.0)


def test_mahalanobis_is_the_distance_in_the_shared_covariance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    means = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    train = means[labels] + torch.randn(60, 4, generator=generator, dtype=torch.float64)
    rows = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    own = torch.stack([train[labels == each].mean(0) for each in range(3)])
    inner = train - own[labels]
    inverse = torch.linalg.inv(inner.T @ inner / 60)
    apart = rows[:, None] - own
    expected = -torch.einsum("ncd,de,nce->nc", apart, inverse, apart).amin(1) / 2
    torch.testing.assert_close(mahalanobis(rows, train, labels), expected)
    # A direction without variance is passed over, and so is a row without a label.
    flat = torch.cat([train, torch.zeros(60, 1, dtype=torch.float64)], 1)
    extra = torch.cat([flat, torch.full((1, 5), 9.0, dtype=torch.float64)])
    wide = torch.cat([rows, torch.ones(5, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(mahalanobis(wide, extra, torch.cat([labels, torch.tensor([-1])])), expected)
    with pytest.raises(ClipxError, match="no training image"):
        mahalanobis(rows, train, torch.full((60,), -1))


def test_the_distance_to_the_kth_neighbour():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    rows = torch.tensor([[1.0, 0.0]])
    found = [float(neighbour(rows, train, k)) for k in (1, 2, 3, 50)]
    assert found == pytest.approx([0, -(2**0.5), -2, -2])
    with pytest.raises(ClipxError, match="no training image"):
        neighbour(rows, train[:0], 1)
