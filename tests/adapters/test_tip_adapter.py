import math

import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, accuracies, drawn, mean_accuracy, unit
from torch.nn import functional

from clipx.adapters.kernels import exp_cos
from clipx.adapters.search import hits, steps_below
from clipx.adapters.tip_adapter import TipAdapter, TipAdapterF, cache_logits, search_alpha_beta
from clipx.adapters.training import Task, fit_many
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError

SMALL = {"alpha_steps": 4, "beta_steps": 6}


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(1, 5.5, (84.535715, 70.923128)), (2, 1, (87.138513, 73.487800))]
)
def test_the_published_case(alpha, beta, expected):
    adapter = TipAdapter(alpha, beta).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    assert adapter.logits(QUERY)[0].tolist() == pytest.approx(expected, abs=5e-7)


def test_the_published_cache():
    values = functional.one_hot(LABELS).double()
    assert cache_logits(QUERY, SHOTS, values, 5.5)[0].tolist() == pytest.approx(
        (0.672682, 0.476133), abs=5e-7
    )
    assert zero_shot_logits(QUERY, TEXT, 100)[0].tolist() == pytest.approx((83.863033, 70.446995), abs=5e-7)


@pytest.mark.parametrize("make", [TipAdapter, lambda **given: TipAdapterF(epochs=2, **given)])
def test_alpha_zero_is_zero_shot_bit_for_bit(make):
    features, labels, text, queries = drawn(dtype=torch.float32)
    ours, theirs = (
        adapter.fit(features, labels, text, logit_scale=100).logits(queries)
        for adapter in (make(alpha=0.0), ZeroShot())
    )
    assert torch.equal(ours, theirs)


def test_the_search_is_the_loop_it_stands_for():
    features, labels, text, queries = drawn(classes=4, queries=50)
    truth = torch.arange(50) % 4
    values = functional.one_hot(labels).double()
    betas, alphas = steps_below(12, 9), steps_below(40, 7)
    zero = zero_shot_logits(queries, text, 10)
    best, expected = 0, None
    for beta in betas:
        for alpha in alphas:
            right = int(hits(zero + alpha * (exp_cos(queries @ features.T, beta) @ values), truth))
            if right > best:
                best, expected = right, (alpha, beta)
    assert search_alpha_beta(queries, truth, features, values, zero, betas, alphas) == expected


def test_the_grid_leaves_its_end_out():
    assert steps_below(12, 4) == pytest.approx([0.1, 3.075, 6.05, 9.025])


@pytest.mark.parametrize(("shots", "expected"), [(1, 44.8), (4, 46.5), (16, 45.6)])
def test_featurebench(shots, expected):
    assert mean_accuracy(lambda: TipAdapter(beta_steps=24), shots) == pytest.approx(expected, abs=1.0)


def test_training_the_keys_helps():
    tip = mean_accuracy(TipAdapter, 16)
    trained = accuracies(TipAdapterF, 16)
    assert sum(trained) / 3 >= tip + 2


def test_zero_epochs_are_tip_adapter():
    features, labels, text, queries = drawn()
    plain, trained = (
        adapter.fit(features, labels, text, logit_scale=100).logits(queries)
        for adapter in (TipAdapter(), TipAdapterF(epochs=0))
    )
    torch.testing.assert_close(plain, trained)


def test_tasks_trained_at_once_are_tasks_trained_alone():
    tasks = []
    for shots, seed in ((2, 1), (2, 2), (3, 1), (2, 3)):
        bench = featurebench(shots=shots, seed=seed, views=2)
        given = (*bench.train, bench.text_classifier, bench.logit_scale, bench.validation, bench.groups)
        tasks.append(
            Task(*(part.double() if getattr(part, "is_floating_point", bool)() else part for part in given))
        )
    adapter = TipAdapterF(epochs=3, batch_size=25, **SMALL)
    for together, task in zip(fit_many(adapter, tasks), tasks, strict=True):
        (alone,) = fit_many(adapter, [task])
        torch.testing.assert_close(together.keys_, alone.keys_)
        assert (together.alpha_, together.beta_) == (alone.alpha_, alone.beta_)


def test_the_best_epoch_may_be_chosen_on_validation():
    bench = featurebench(shots=4, seed=1)
    given = (*bench.train, bench.text_classifier)
    # At so high a rate training passes its best and falls far below.
    last, best = (
        TipAdapterF(lr=0.1, alpha=5.0, beta=5.5, select=select, search=False).fit(
            *given, logit_scale=100, validation=bench.validation
        )
        for select in ("last", "validation")
    )
    features, labels = bench.validation
    assert int(hits(best.logits(features), labels)) > int(hits(last.logits(features), labels)) + 10
    with pytest.raises(ClipxError, match="needs validation"):
        TipAdapterF(select="validation").fit(*given, logit_scale=100)


def test_views_are_averaged_before_they_are_normalised():
    views, norms = unit([[1, 0], [0, 1], [0, 1]]), torch.tensor([3.0, 1.0, 1.0])
    adapter = TipAdapter().fit(
        views,
        torch.tensor([0, 0, 1]),
        unit([[1, 0], [0, 1]]),
        logit_scale=100,
        groups=torch.tensor([7, 7, 9]),
        norms=norms,
    )
    assert adapter.keys_[0].tolist() == pytest.approx((3 / math.sqrt(10), 1 / math.sqrt(10)))


@pytest.mark.parametrize("adapter", [TipAdapter(), TipAdapterF(epochs=2)])
def test_neither_the_order_of_rows_nor_the_batch_matters(adapter):
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    expected = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = adapter.fit(features[order], labels[order], text, logit_scale=100)
    parts = torch.cat([shuffled.logits(part) for part in queries.split(7)])
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-5)


def test_a_class_without_a_shot_keeps_its_zero_shot_logit():
    features, labels, text, queries = drawn()
    kept = labels != 2
    with pytest.warns(UserWarning, match="class 2 has no shot"):
        adapter = TipAdapter().fit(features[kept], labels[kept], text, logit_scale=100)
    assert torch.equal(adapter.logits(queries)[:, 2], zero_shot_logits(queries, text, 100)[:, 2])


def test_new_classes_are_zero_shot():
    features, labels, text, queries = drawn()
    adapter = TipAdapter().fit(features, labels, text, logit_scale=100)
    assert torch.equal(
        adapter.for_classes(text[:3]).logits(queries), zero_shot_logits(queries, text[:3], 100)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"alpha_scale": 0.1}, "alpha_scale is 0.1"),
        ({"beta_steps": 0}, "beta_steps is 0"),
    ],
)
@pytest.mark.parametrize("adapter", [TipAdapter, TipAdapterF])
def test_numbers_out_of_range_are_named(adapter, given, message):
    with pytest.raises(ClipxError, match=message):
        adapter(**given)


def test_choices_are_named():
    with pytest.raises(ClipxError, match="unknown select 'best'"):
        TipAdapterF(select="best")
