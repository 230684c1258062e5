import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, drawn, mean_accuracy
from torch.nn import functional

from clipx.adapters.kernels import exp_cos
from clipx.adapters.local_regression import (
    LocalLinear,
    NadarayaWatson,
    constant_answers,
    plane_answers,
    plane_weights,
)
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits
from clipx.errors import ClipxError

VALUES = functional.one_hot(LABELS).double()


def test_the_published_case():
    found = constant_answers(QUERY, SHOTS, VALUES, 1.0)
    assert found[0].tolist() == pytest.approx((0.518577, 0.481423), abs=5e-7)
    adapter = NadarayaWatson(alpha=2.0, beta=1.0).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    torch.testing.assert_close(adapter.logits(QUERY), zero_shot_logits(QUERY, TEXT, 100) + 2 * found)


def test_the_average_is_the_kernel_over_its_sum():
    features, labels, _, queries = drawn()
    kernel, values = exp_cos(queries @ features.T, 3.0), functional.one_hot(labels).double()
    expected = kernel @ values / kernel.sum(1, keepdim=True)
    torch.testing.assert_close(constant_answers(queries, features, values, 3.0), expected)


def test_the_plane_is_the_ridge_regression_it_stands_for():
    features, labels, _, queries = drawn()
    values, beta, ridge = functional.one_hot(labels).double(), 3.0, 0.05
    (found,) = plane_answers(queries, features, values, beta, [ridge])
    for query, row in zip(queries, found, strict=True):
        weights = exp_cos(features @ query, beta)
        weights = weights / weights.sum()
        design = torch.cat([torch.ones(len(features), 1).double(), features - query], 1)
        penalty = ridge * torch.eye(design.shape[1]).double()
        penalty[0, 0] = 0  # the constant is free
        normal = design.T @ (weights[:, None] * design) + penalty
        expected = torch.linalg.solve(normal, design.T @ (weights[:, None] * values))[0]
        torch.testing.assert_close(row, expected)


def test_the_plane_has_no_bias_where_the_values_lie_on_one():
    features, _, _, queries = drawn(classes=10, shots=6)
    slope = torch.linspace(-1, 2, 24).double().reshape(12, 2)
    (plane,) = plane_answers(queries, features, features @ slope + 0.3, 2.0, [1e-10])
    torch.testing.assert_close(plane, queries @ slope + 0.3, atol=1e-6, rtol=0)
    constant = constant_answers(queries, features, features @ slope + 0.3, 2.0)
    assert float((constant - queries @ slope - 0.3).abs().mean()) > 0.2


def test_a_huge_ridge_is_the_average():
    features, labels, text, queries = drawn()
    plane = LocalLinear(alpha=3, beta=2, ridge=1e9).fit(features, labels, text, logit_scale=100)
    average = NadarayaWatson(alpha=3, beta=2).fit(features, labels, text, logit_scale=100)
    torch.testing.assert_close(plane.logits(queries), average.logits(queries))


def test_weights_of_a_plane_sum_to_one():
    features, _, _, queries = drawn()
    weights = plane_weights(queries, features, 2.0, [0.001, 0.1])
    assert weights.shape == (2, 30, 20)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 30).double())
    assert float(weights.min()) < 0


@pytest.mark.parametrize(("make", "margin"), [(NadarayaWatson, -1), (LocalLinear, 5)])
def test_featurebench(make, margin):
    assert mean_accuracy(make, 4) >= mean_accuracy(ZeroShot, 4) + margin


def test_the_plane_beats_the_average_where_shots_are_many():
    assert mean_accuracy(LocalLinear, 16) > mean_accuracy(NadarayaWatson, 16) + 20


@pytest.mark.parametrize("adapter", [NadarayaWatson(), LocalLinear()], ids=["constant", "plane"])
def test_neither_the_order_of_rows_nor_the_batch_matters(adapter):
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    expected = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = adapter.fit(features[order], labels[order], text, logit_scale=100)
    torch.testing.assert_close(torch.cat([shuffled.logits(part) for part in queries.split(7)]), expected)


@pytest.mark.parametrize("make", [NadarayaWatson, LocalLinear])
def test_views_are_kept_or_averaged(make):
    features, labels, text, queries = drawn()
    groups = torch.arange(20) // 2
    kept, averaged = (
        make(views=views).fit(features, labels, text, logit_scale=100, groups=groups)
        for views in ("keep", "average")
    )
    assert len(kept.keys_) == 20
    halves = functional.normalize(features.reshape(10, 2, 12).mean(1), dim=-1)
    alone = make().fit(halves, labels[::2], text, logit_scale=100)
    torch.testing.assert_close(averaged.logits(queries), alone.logits(queries))


@pytest.mark.parametrize("make", [NadarayaWatson, LocalLinear])
def test_what_is_searched_is_the_first_best(make):
    features, labels, text, queries = drawn()
    grid = {"alpha_grid": (1.0, 50.0, 4), "beta_grid": (0.5, 8.0, 3)}
    if make is LocalLinear:
        grid["ridges"] = (0.01, 1.0)
    truth = torch.arange(30) % 5
    adapter = make(**grid).fit(features, labels, text, logit_scale=5, validation=(queries, truth))
    best, chosen = -1, None
    for beta in torch.linspace(0.5, 8, 3).tolist():
        for ridge in grid.get("ridges", (None,)):
            for alpha in torch.linspace(1, 50, 4).double().tolist():
                given = {"alpha": alpha, "beta": beta} | ({} if ridge is None else {"ridge": ridge})
                logits = make(**given).fit(features, labels, text, logit_scale=5).logits(queries)
                right = int((logits.argmax(1) == truth).sum())
                if right > best:
                    best, chosen = right, given
    assert {name: getattr(adapter, f"{name}_") for name in chosen} == pytest.approx(chosen)


@pytest.mark.parametrize("make", [NadarayaWatson, LocalLinear])
def test_new_classes_are_zero_shot(make):
    features, labels, text, queries = drawn()
    adapter = make().fit(features, labels, text, logit_scale=100).for_classes(text[1:3])
    assert torch.equal(adapter.logits(queries), zero_shot_logits(queries, text[1:3], 100))


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (NadarayaWatson, {"alpha": -1}, "alpha is -1"),
        (NadarayaWatson, {"beta": 0}, "beta is 0"),
        (NadarayaWatson, {"alpha_grid": (1, 2)}, r"alpha_grid is \[1, 2\], must be \[first, last, number\]"),
        (NadarayaWatson, {"beta_grid": (0, 1, 2)}, "beta_grid is 0"),
        (LocalLinear, {"ridge": 0}, "ridge is 0"),
        (LocalLinear, {"ridges": ()}, "ridges is empty"),
        (LocalLinear, {"views": "some"}, "unknown views"),
    ],
)
def test_settings_out_of_range_are_named(make, given, message):
    with pytest.raises(ClipxError, match=message):
        make(**given)
