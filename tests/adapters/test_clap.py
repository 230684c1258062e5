import math

import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, drawn, mean_accuracy
from torch.nn import functional

from clipx.adapters.clap import CLAPHead, class_strengths, warm_cosine
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits
from clipx.errors import ClipxError


def test_strengths_are_mean_probabilities_of_the_own_class():
    odds = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 1.0]]).double().log1p()  # 1 to 4, 1 to 2, 1 to 2
    found = class_strengths(odds, torch.tensor([0, 0, 1]))
    assert found.tolist() == pytest.approx([(1 / 5 + 1 / 3) / 2, 2 / 3])


def test_the_rate_warms_up_and_falls_on_a_cosine():
    shares = [warm_cosine(step, 2000, 1e-4, 50) for step in (0, 25, 50, 1025, 2000)]
    assert shares == pytest.approx([0.1, 0.55, 1, 0.5, 0])
    assert warm_cosine(0, 10, 1e-4, 0) == 1


def test_training_is_the_published_loop():
    adapter = CLAPHead(lr=0.01, steps=7, batch_size=4, warm_up=3, weight_decay=0.1)
    adapter.fit(SHOTS, LABELS, TEXT, logit_scale=10)
    prototypes = TEXT.clone().requires_grad_()
    probability = (10 * SHOTS @ TEXT.T).softmax(1)
    strength = torch.stack([probability[:2, 0].mean(), probability[2:, 1].mean()])
    first, second = torch.zeros_like(TEXT), torch.zeros_like(TEXT)
    for step in range(7):
        rate = (
            1e-5 + (0.01 - 1e-5) * step / 3 if step < 3 else 0.005 * (1 + math.cos(math.pi * (step - 3) / 4))
        )
        unit = prototypes / prototypes.norm(dim=1, keepdim=True)
        loss = functional.cross_entropy(10 * SHOTS @ unit.T, LABELS)
        loss = loss + (strength * ((prototypes - TEXT) ** 2).sum(1)).mean()
        (slope,) = torch.autograd.grad(loss, prototypes)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        away = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        prototypes = (prototypes * (1 - rate * 0.1) - rate * away).detach().requires_grad_()
    expected = functional.normalize(prototypes.detach(), dim=-1)
    torch.testing.assert_close(adapter.prototypes_, expected)
    torch.testing.assert_close(adapter.logits(QUERY), 10 * QUERY @ expected.T)
    torch.testing.assert_close(adapter.strengths_, strength)


def test_no_step_is_zero_shot():
    features, labels, text, queries = drawn()
    adapter = CLAPHead(steps=0).fit(features, labels, text, logit_scale=100)
    torch.testing.assert_close(adapter.logits(queries), zero_shot_logits(queries, text, 100))
    assert torch.equal(adapter.for_classes(text).logits(queries), zero_shot_logits(queries, text, 100))


@pytest.mark.parametrize(("shots", "margin"), [(1, 0), (16, 10)])
def test_featurebench(shots, margin):
    assert mean_accuracy(lambda: CLAPHead(steps=500), shots) > mean_accuracy(ZeroShot, shots) + margin


def test_the_same_seed_is_the_same_head():
    features, labels, text, _ = drawn(shots=20)
    one, two, other = (
        CLAPHead(steps=4, batch_size=16, lr=0.01, seed=seed).fit(features, labels, text, logit_scale=10)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.prototypes_, two.prototypes_)
    assert not torch.equal(one.prototypes_, other.prototypes_)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"steps": -1}, "steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"warm_up": -1}, "warm_up is -1"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        CLAPHead(**given)


def test_a_class_without_a_shot_is_named():
    features, labels, text, _ = drawn()
    with pytest.raises(ClipxError, match="class 2 has no shot"):
        CLAPHead().fit(features[labels != 2], labels[labels != 2], text, logit_scale=100)
