import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, drawn, mean_accuracy
from torch.nn import functional

from clipx.adapters.kernels import exp_cos
from clipx.adapters.proker import ProKeR, coefficients, grid_hits
from clipx.adapters.search import hits, linspace
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.errors import ClipxError

GIVEN = {"beta": 1.0, "lam": 0.5}


@pytest.mark.parametrize(
    ("form", "expected"), [("code", (0.780909, 0.671708)), ("ridge", (0.723188, 0.638945))]
)
def test_the_published_case(form, expected):
    adapter = ProKeR(**GIVEN, form=form).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    assert adapter.logits(QUERY)[0].tolist() == pytest.approx(expected, abs=5e-7)
    if form == "code":
        rows = ((0.015427, -0.029395), (0.083689, -0.065171), (-0.040028, -0.013529), (-0.137135, 0.067082))
        for row, wanted in zip(adapter.coefficients_.tolist(), rows, strict=True):
            assert row == pytest.approx(wanted, abs=5e-7)


@pytest.mark.parametrize("form", ["code", "ridge"])
def test_one_eigendecomposition_serves_all_lams(form):
    features, labels, text, queries = drawn(classes=4, queries=60)
    truth, lams = torch.arange(60) % 4, linspace(0.001, 10, 12)
    kernel, others = exp_cos(features @ features.T, 2.0), exp_cos(queries @ features.T, 2.0)
    residual = functional.one_hot(labels).double() - features @ text.T
    expected = [
        int(hits(queries @ text.T + others @ coefficients(kernel, residual, lam, form), truth))
        for lam in lams
    ]
    assert grid_hits(kernel, residual, others, queries @ text.T, truth, lams, form).tolist() == expected


@pytest.mark.parametrize(("shots", "expected"), [(1, 48.6), (4, 59.1), (8, 67.3), (16, 78.5)])
def test_featurebench(shots, expected):
    assert mean_accuracy(ProKeR, shots) == pytest.approx(expected, abs=1.0)


def test_random_features_come_near_the_kernel():
    features, labels, text, queries = drawn()
    exact, near = (
        ProKeR(**GIVEN, random_features=count).fit(features, labels, text, logit_scale=100).logits(queries)
        for count in (0, 3000)
    )
    torch.testing.assert_close(near, exact, atol=0.03, rtol=0)
    assert mean_accuracy(lambda: ProKeR(random_features=100, beta_grid=(1, 5, 3)), 4) > 50


def test_too_many_rows_name_the_ways_out():
    features, labels, text, _ = drawn()
    with pytest.raises(ClipxError, match="too many for an exact kernel") as caught:
        ProKeR(max_rows=19).fit(features, labels, text, logit_scale=100)
    assert "views=average" in caught.value.hint
    groups = torch.arange(20) // 2
    adapter = ProKeR(max_rows=19, views="average")
    assert len(adapter.fit(features, labels, text, logit_scale=100, groups=groups).keys_) == 10


def test_a_huge_ridge_is_zero_shot():
    features, labels, text, queries = drawn()
    adapter = ProKeR(lam=1e9, form="ridge").fit(features, labels, text, logit_scale=100)
    torch.testing.assert_close(adapter.logits(queries), queries @ text.T, atol=1e-7, rtol=0)


def test_neither_the_order_of_rows_nor_the_batch_matters():
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    expected = ProKeR().fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = ProKeR().fit(features[order], labels[order], text, logit_scale=100)
    torch.testing.assert_close(torch.cat([shuffled.logits(part) for part in queries.split(7)]), expected)


def test_classes_are_those_of_the_head():
    features, labels, text, queries = drawn()
    with pytest.warns(UserWarning, match="class 4 has no shot"):
        adapter = ProKeR().fit(features[labels < 4], labels[labels < 4], text, logit_scale=100)
    assert adapter.logits(queries).shape == (30, 5)
    assert torch.equal(adapter.for_classes(text).logits(queries), zero_shot_logits(queries, text, 100))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"lam": 0}, "lam is 0"),
        ({"lam_grid": (0.0, 1, 3)}, "lam_grid is 0.0"),
        ({"beta_grid": (1, 2)}, r"must be \[first, last, number\]"),
        ({"beta_grid": (2, 1, 3)}, "beta_grid is 1"),
        ({"form": "paper"}, "unknown form"),
        ({"views": "some"}, "unknown views"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        ProKeR(**given)
