import math

import numpy as np
import pytest
import torch
from bench import LABELS, SHOTS, TEXT, drawn, mean_accuracy
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from clipx.adapters.linear_probe import (
    COARSE,
    LinearProbe,
    LPpp,
    search_c,
    starting_weights,
    step_sizes,
)
from clipx.adapters.training import Task, fit_many
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError


def test_the_published_case():
    similarity = SHOTS @ TEXT.T
    lr_weight, lr_alpha = step_sizes(SHOTS, similarity)
    assert float(lr_weight) == pytest.approx(6.8415313, abs=5e-8)
    assert float(lr_alpha) == pytest.approx(0.5162829, abs=5e-8)
    sums, start = starting_weights(SHOTS, LABELS, similarity)
    assert float(start) == pytest.approx(234.7057304, abs=5e-8)
    for row, wanted in zip(
        sums.tolist(), ((1.974464, 0.110432, 0.196116), (0.242536, 1.927969, 0.287348)), strict=True
    ):
        assert row == pytest.approx(wanted, abs=5e-7)
    adapter = LPpp(epochs=0).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    logits = adapter.logits(SHOTS) - adapter.bias_
    assert logits[0].tolist() == pytest.approx((224.871907, 38.593106), abs=5e-7)


def reference(features, labels, text, bias, epochs, accumulate):
    """LP++ by autograd and torch's own SGD."""
    similarity = features @ text.T
    lr_weight, lr_alpha = step_sizes(features, similarity)
    sums, start = starting_weights(features, labels, similarity)
    weight, bias = sums.clone().requires_grad_(), bias.clone().requires_grad_()
    alpha = start.repeat(len(text)).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=float(lr_weight), momentum=0.9)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        if not accumulate:
            alpha.grad = None
        functional.cross_entropy(features @ weight.T + bias + alpha * similarity, labels).backward()
        optimizer.step()
        if epoch % 10 == 0:
            with torch.no_grad():
                alpha -= lr_alpha * alpha.grad
    return weight, bias, alpha


@pytest.mark.parametrize("accumulate", [False, True])
def test_its_gradients_are_autograds(accumulate):
    features, labels, text, _ = drawn()
    start = LPpp(epochs=0).fit(features, labels, text, logit_scale=100)
    adapter = LPpp(epochs=35, accumulate_alpha_grad=accumulate).fit(features, labels, text, logit_scale=100)
    expected = reference(features, labels, text, start.bias_, 35, accumulate)
    for found, wanted in zip((adapter.weight_, adapter.bias_, adapter.multipliers_), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach())


@pytest.mark.parametrize(("shots", "expected"), [(1, 46.9), (4, 55.6), (16, 78.4)])
def test_featurebench_lp_pp(shots, expected):
    assert mean_accuracy(LPpp, shots) == pytest.approx(expected, abs=1.5)


def test_featurebench_linear_probe():
    probe, zero_shot, plus = (
        [mean_accuracy(make, shots) for shots in (1, 4, 16)] for make in (LinearProbe, ZeroShot, LPpp)
    )
    assert probe[0] == pytest.approx(10.5, abs=3)
    assert probe[1] == pytest.approx(31.9, abs=5)  # the sheet searched another grid on 80 images
    assert probe[2] == pytest.approx(74.0, abs=3)
    assert probe[0] < zero_shot[0]
    assert probe[1] < zero_shot[1]
    assert all(p > z for p, z in zip(plus, zero_shot, strict=True))
    assert all(plus[k] > probe[k] + 10 for k in (0, 1))


def test_tasks_trained_at_once_are_tasks_trained_alone():
    tasks = []
    for seed in (1, 2):
        bench = featurebench(shots=2, seed=seed)
        validation = (bench.validation[0].double(), bench.validation[1])
        tasks.append(
            Task(bench.train[0].double(), bench.train[1], bench.text_classifier.double(), 100.0, validation)
        )
    for together, task in zip(fit_many(LPpp(epochs=40), tasks), tasks, strict=True):
        (alone,) = fit_many(LPpp(epochs=40), [task])
        torch.testing.assert_close(together.weight_, alone.weight_)
        torch.testing.assert_close(together.multipliers_, alone.multipliers_)
        assert together.epoch_ == alone.epoch_
    for probe, task in zip(fit_many(LinearProbe(rounds=1), tasks), tasks, strict=True):
        (alone,) = fit_many(LinearProbe(rounds=1), [task])
        assert torch.equal(probe.weight_, alone.weight_)


def test_few_rows_are_solved_in_their_own_space():
    bench = featurebench(shots=2, seed=1)
    x, y = bench.train[0].double(), bench.train[1]
    adapter = LinearProbe(c=10.0).fit(x, y, bench.text_classifier, logit_scale=100)
    reference = LogisticRegression(C=10.0, tol=1e-7, max_iter=5000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(adapter.weight_.numpy(), reference.coef_, atol=5e-3)
    np.testing.assert_allclose(adapter.bias_.numpy(), reference.intercept_, atol=1e-2)


def test_the_search_halves_towards_the_better_end():
    asked = []

    def right(c):
        asked.append(c)
        return -abs(math.log10(c) - 2.6)

    assert search_c(right, 0) == COARSE[2]
    assert math.log10(search_c(right, 8)) == pytest.approx(2.6, abs=0.02)
    assert search_c(lambda c: 0, 1) == pytest.approx(1e5)


def test_two_classes():
    adapter = LinearProbe(c=100.0).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    logits = adapter.logits(SHOTS)
    assert logits.argmax(1).tolist() == LABELS.tolist()
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])


@pytest.mark.parametrize("adapter", [LinearProbe(), LPpp(epochs=50)])
def test_neither_the_order_of_rows_nor_the_batch_matters(adapter):
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    expected = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = adapter.fit(features[order], labels[order], text, logit_scale=100)
    parts = torch.cat([shuffled.logits(part) for part in queries.split(7)])
    torch.testing.assert_close(parts, expected, rtol=1e-3, atol=1e-3)


def test_unequal_shots():
    features, labels, text, queries = drawn()
    kept = torch.cat([torch.arange(4), torch.arange(4, 20, 3)])
    for adapter in (LPpp(epochs=5), LinearProbe()):
        fitted = adapter.fit(features[kept], labels[kept], text, logit_scale=100)
        assert fitted.logits(queries).isfinite().all()
    similarity = features[kept] @ text.T
    own = similarity.gather(1, labels[kept, None])[:, 0]
    mean = torch.stack([own[labels[kept] == c].mean() for c in range(5)]).mean()
    torch.testing.assert_close(starting_weights(features[kept], labels[kept], similarity)[1], 250 * mean)


def test_of_unseen_classes():
    bench = featurebench(shots=4, seed=1)
    features, labels = bench.train
    adapter = LPpp(epochs=5).fit(features, labels, bench.text_classifier, logit_scale=100)
    new = adapter.for_classes(bench.text_classifier[:3]).logits(features)
    assert torch.equal(new, zero_shot_logits(features, bench.text_classifier[:3], adapter.start_))
    with pytest.raises(ClipxError, match="class 2 has no shot"):
        LinearProbe().fit(features[labels != 2], labels[labels != 2], bench.text_classifier, logit_scale=1)
    with pytest.warns(UserWarning, match="class 2 has no shot"):
        LPpp(epochs=1).fit(features[labels != 2], labels[labels != 2], bench.text_classifier, logit_scale=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearProbe(c=0), "c is 0"),
        (lambda: LinearProbe(max_iter=0), "max_iter is 0"),
        (lambda: LPpp(momentum=1), "momentum is 1"),
        (lambda: LPpp(alpha_every=0), "alpha_every is 0"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ClipxError, match=message):
        make()
