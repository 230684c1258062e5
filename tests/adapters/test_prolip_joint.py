import pytest
import torch
from bench import fitted_on, mean_accuracy
from torch.nn import functional

from clipx.adapters.prolip import ProLIP, project
from clipx.adapters.prolip_joint import ProLIPTaskRes, ProLIPTip
from clipx.adapters.protocol import copy
from clipx.adapters.saving import load, save
from clipx.adapters.tip_adapter import TipAdapter
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError

LIFTED = {"pre_projection": True}
MAKES = [ProLIPTip, ProLIPTaskRes]
START = torch.tensor([[1, 0], [0, 1], [0.5, 0.5]]).double()
BIAS = torch.tensor([0.1, -0.2]).double()
ROWS = torch.tensor([[1, 2, 0], [0, 1, 1], [3, 0, 1], [2, 0, -1]]).double()
LABELS = torch.tensor([1, 1, 0, 0])
TEXT = torch.eye(2).double()
QUERY = torch.tensor([[1, 1, 1.5], [0, 2, 0.3]]).double()


def toy(adapter, **given):
    usual = {"logit_scale": 10, "projection": (START, BIAS)}
    return adapter.fit(ROWS, LABELS, TEXT, **{**usual, **given})


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def published(make, steps, lr):
    """The loop of the code, written out for the toy; the logits of the queries."""
    weight = START.clone().requires_grad_()
    frozen, values = unit(ROWS @ START + BIAS), functional.one_hot(LABELS).double()
    beside = (frozen if make is ProLIPTip else torch.zeros(2, 2).double()).clone().requires_grad_()

    def logits(rows):
        scores = 10 * unit(rows @ weight + BIAS) @ TEXT.T
        old = unit(rows @ START + BIAS)
        if make is ProLIPTip:
            return scores + torch.exp(-(1 - old @ beside.T)) @ values
        return scores + 0.1 * 10 * old @ beside.T

    kind = torch.optim.AdamW if make is ProLIPTip else torch.optim.Adam
    optimizer = kind([weight, beside], lr=lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = functional.cross_entropy(logits(ROWS), LABELS) + 0.5 * ((weight - START) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits(QUERY).detach()


@pytest.mark.parametrize("make", MAKES)
def test_training_is_the_published_loop(make):
    adapter = toy(make(steps=5, lr=0.02))
    torch.testing.assert_close(adapter.logits(QUERY), published(make, 5, 0.02))
    assert adapter.moved_ > 0


def test_no_step_is_tip_adapter_or_zero_shot():
    shots, queries = project(ROWS, START, BIAS), project(QUERY, START, BIAS)
    tip = TipAdapter(alpha=2.0, beta=3.0).fit(shots, LABELS, TEXT, logit_scale=10)
    ours = toy(ProLIPTip(alpha=2.0, beta=3.0, steps=0))
    torch.testing.assert_close(ours.logits(QUERY), tip.logits(queries))
    ours = toy(ProLIPTaskRes(steps=0))
    torch.testing.assert_close(ours.logits(QUERY), zero_shot_logits(queries, TEXT, 10))


def test_keys_are_views_averaged_before_they_are_normalised():
    groups = torch.tensor([0, 0, 1, 1])
    adapter = toy(ProLIPTip(steps=0), groups=groups)
    expected = unit((ROWS @ START + BIAS).reshape(2, 2, 2).mean(1))
    torch.testing.assert_close(adapter.keys_, expected)
    assert adapter.values_.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("make", MAKES)
def test_steps_take_the_views_in_turn(make):
    groups = torch.tensor([0, 0, 1, 1])
    adapter = toy(make(lam=0.5, steps=1, lr=0.02), groups=groups)
    start = torch.stack([ROWS[1], ROWS[3]])
    weight = START.clone().requires_grad_()
    logits = 10 * unit(start @ weight + BIAS) @ TEXT.T
    if make is ProLIPTip:
        keys = unit((ROWS @ START + BIAS).reshape(2, 2, 2).mean(1))
        closeness = unit(start @ START + BIAS) @ keys.T
        logits = logits + torch.exp(closeness - 1) @ torch.tensor([[0, 1], [1, 0]]).double()
    functional.cross_entropy(logits, torch.tensor([1, 0])).backward()
    decay = 1 - 0.02 * 0.01 if make is ProLIPTip else 1.0
    expected = START * decay - 0.02 * weight.grad / (weight.grad.abs() + 1e-4)
    torch.testing.assert_close(adapter.projection_, expected)


@pytest.mark.parametrize("make", MAKES)
def test_featurebench(make):
    assert mean_accuracy(make, 4, **LIFTED) > mean_accuracy(ZeroShotBefore, 4, **LIFTED) + 3


class ZeroShotBefore(ProLIP):
    """Zero-shot on rows before the projection."""

    def __init__(self):
        super().__init__(steps=0)


@pytest.mark.parametrize("make", MAKES)
def test_saved_and_read_it_is_the_same_and_the_models_own_weight_stays(make, tmp_path):
    bench = featurebench(shots=2, seed=1, **LIFTED)
    before = bench.projection[0].clone()
    adapter = fitted_on(bench, make(steps=5))
    assert torch.equal(bench.projection[0], before)
    save(adapter, tmp_path / "a")
    again, rows = load(tmp_path / "a"), bench.test[0]
    assert torch.equal(again.logits(rows), adapter.logits(rows))
    assert copy(again).steps == 5


@pytest.mark.parametrize("make", MAKES)
def test_new_classes_are_seen_through_the_projection_alone(make, tmp_path):
    adapter = toy(make(steps=5, lr=0.02))
    expected = 10 * project(QUERY, adapter.projection_, BIAS) @ TEXT.flip(0).T
    other = adapter.for_classes(TEXT.flip(0))
    torch.testing.assert_close(other.logits(QUERY), expected)
    save(other, tmp_path / "a")
    torch.testing.assert_close(load(tmp_path / "a").logits(QUERY), expected)


@pytest.mark.parametrize("make", MAKES)
def test_a_model_without_a_projection_is_named(make):
    with pytest.raises(ClipxError, match="no projection to train"):
        toy(make(), projection=None)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (ProLIPTip, {"alpha": -1}, "alpha is -1"),
        (ProLIPTip, {"beta": -1}, "beta is -1"),
        (ProLIPTip, {"weight_decay": -1}, "weight_decay is -1"),
        (ProLIPTip, {"lam": "1/N"}, "lam is"),
        (ProLIPTaskRes, {"residual": -1}, "residual is -1"),
        (ProLIPTaskRes, {"lr": 0}, "lr is 0"),
        (ProLIPTaskRes, {"eps": 0}, "eps is 0"),
    ],
)
def test_settings_out_of_range_are_named(make, given, message):
    with pytest.raises(ClipxError, match=message):
        make(**given)
