import pytest
import torch
from bench import accuracies, drawn, fitted_on, mean_accuracy
from torch.nn import functional

from clipx.adapters.prolip import RLA, ProLIP, distance, penalty_of, project
from clipx.adapters.saving import load, save
from clipx.adapters.training import Task, fit_many
from clipx.adapters.zero_shot import ZeroShot
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError


def test_the_published_case():
    start = torch.tensor([[1, 0], [0, 1], [0.5, 0.5]]).double()
    rows = torch.tensor([[1, 2, 0], [0, 1, 1]]).double()
    weight = start + 0.1
    assert float(distance(weight, start)) == pytest.approx(0.06)
    logits = 100 * project(rows, weight) @ torch.eye(2).double()
    entropy = float(functional.cross_entropy(logits, torch.tensor([1, 1])))
    assert entropy < 1e-12
    assert entropy + penalty_of("1/K", 2) * 0.06 == pytest.approx(0.03)


def test_rules_of_the_penalty():
    assert [penalty_of(rule, 4) for rule in ("1/K", "1/K2", 0.3)] == [0.25, 0.0625, 0.3]
    for wrong in ("1/N", -1.0):
        with pytest.raises(ClipxError, match="lam is"):
            penalty_of(wrong, 4)


LIFTED = {"pre_projection": True}


@pytest.mark.parametrize(("shots", "expected"), [(1, 49.7), (16, 72.6)])
def test_featurebench_prolip(shots, expected):
    assert mean_accuracy(lambda: ProLIP(lr=1e-3), shots, **LIFTED) == pytest.approx(expected, abs=1)


def test_the_penalty_makes_the_rate_matter_little():
    with_penalty, without = (
        [accuracies(lambda lr=lr, lam=lam: ProLIP(lam, lr), 4, (1,), **LIFTED)[0] for lr in (1e-3, 1e-2)]
        for lam in ("1/K", 0.0)
    )
    assert abs(with_penalty[0] - with_penalty[1]) <= 3
    assert abs(without[0] - without[1]) >= 10


@pytest.mark.parametrize(("shots", "expected"), [(1, 49.4), (4, 58.5)])
def test_featurebench_rla(shots, expected):
    assert mean_accuracy(RLA, shots) == pytest.approx(expected, abs=1)


def test_no_step_is_zero_shot():
    features, labels, text, queries = drawn()
    ours = RLA(steps=0).fit(features, labels, text, logit_scale=100).logits(queries)
    theirs = ZeroShot().fit(features, labels, text, logit_scale=100).logits(queries)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_bias_is_added_before_and_not_trained(tmp_path):
    bench = featurebench(shots=2, seed=1, pre_projection=True)
    bias = torch.linspace(-0.1, 0.1, 64)
    adapter = ProLIP(steps=3, lr=1e-2).fit(
        *bench.train,
        bench.text_classifier,
        logit_scale=100,
        projection=(bench.projection[0], bias),
    )
    assert torch.equal(adapter.projection_bias_, bias)
    rows = bench.test[0]
    expected = 100 * functional.normalize(rows @ adapter.projection_ + bias, dim=-1) @ bench.text_classifier.T
    torch.testing.assert_close(adapter.logits(rows), expected)
    save(adapter, tmp_path / "a")
    assert torch.equal(load(tmp_path / "a").logits(rows), adapter.logits(rows))


def test_the_models_own_weight_stays():
    bench = featurebench(shots=1, seed=1, pre_projection=True)
    before = bench.projection[0].clone()
    adapter = fitted_on(bench, ProLIP(steps=5, lr=1e-2))
    assert torch.equal(bench.projection[0], before)
    assert adapter.moved_ > 0


def test_the_grid_is_searched_on_validation():
    bench = featurebench(shots=4, seed=1, pre_projection=True)
    adapter = fitted_on(bench, ProLIP(search=True, lrs=(1e-8, 1e-3), lams=(10.0, 0.01), steps=60))
    assert adapter.lr_ == 1e-3
    alone = fitted_on(bench, ProLIP(adapter.lam_, adapter.lr_, steps=60))
    torch.testing.assert_close(alone.projection_, adapter.projection_, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", [ProLIP(lr=1e-3, steps=8), RLA(search=True, lrs=(1e-3,), steps=8)])
def test_tasks_trained_at_once_are_tasks_trained_alone(adapter):
    tasks = []
    for seed in (1, 2):
        bench = featurebench(shots=2, seed=seed, views=3, pre_projection=isinstance(adapter, ProLIP))
        validation = (bench.validation[0].double(), bench.validation[1])
        rows, text = bench.train[0].double(), bench.text_classifier.double()
        task = Task(rows, bench.train[1], text, 100.0, validation, bench.groups)
        tasks.append(task._replace(projection=bench.projection))
    for together, task in zip(fit_many(adapter, tasks), tasks, strict=True):
        (alone,) = fit_many(adapter, [task])
        torch.testing.assert_close(together.projection_, alone.projection_)
        assert together.lam_ == alone.lam_


def test_steps_take_the_views_in_turn():
    features, labels, text, queries = drawn(shots=2)
    groups = torch.arange(10) // 2
    one = RLA(steps=1).fit(features, labels, text, logit_scale=10, groups=groups)
    second = RLA(steps=1).fit(features[1::2], labels[1::2], text, logit_scale=10)
    torch.testing.assert_close(one.logits(queries), second.logits(queries))


def test_neither_the_order_of_rows_nor_the_batch_matters():
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    expected = RLA(steps=20).fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = RLA(steps=20).fit(features[order], labels[order], text, logit_scale=100)
    torch.testing.assert_close(torch.cat([shuffled.logits(part) for part in queries.split(7)]), expected)


def test_new_classes_are_seen_through_the_same_map():
    features, labels, text, queries = drawn()
    adapter = RLA(steps=5).fit(features, labels, text, logit_scale=100)
    torch.testing.assert_close(adapter.for_classes(text[1:]).logits(queries), adapter.logits(queries)[:, 1:])


def test_what_prolip_cannot_train_is_said():
    bench = featurebench(shots=1, seed=1, pre_projection=True)
    given = (*bench.train, bench.text_classifier)
    with pytest.raises(ClipxError, match="no projection to train"):
        ProLIP().fit(*given, logit_scale=100)
    with pytest.raises(ClipxError, match=r"is \[64, 96\], must be \[96, 64\]"):
        ProLIP().fit(*given, logit_scale=100, projection=(bench.projection[0].T, None))
    with pytest.raises(ClipxError, match="lr is 0"):
        ProLIP(lr=0)
    with pytest.raises(ClipxError, match="dimensions"):
        fitted_on(bench, ProLIP(steps=0)).logits(bench.test[0][:, 1:])


def test_prolip_beats_zero_shot():
    assert min(accuracies(lambda: ProLIP(lr=1e-3), 1, **LIFTED)) > 44.6 + 3
