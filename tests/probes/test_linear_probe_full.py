"""The full-data probe on features whose classes are known."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.probes.linear_probe_full import LinearProbeFull, Logistic, Neighbours, StochasticHeads
from clipx.probes.protocol import Material

CENTRES = 1.2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def split(count, seed, labels=None):
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(count) % 4 if labels is None else labels
    rows = CENTRES[own.clamp_min(0)] + torch.randn(count, 6, generator=generator)
    return FeatureSet(
        image=functional.normalize(rows, dim=1),
        labels=own,
        index=torch.arange(count),
        ids=[str(place) for place in range(count)],
        texts=[],
        pairs=torch.empty(0, 2, dtype=torch.long),
        text=None,
        skipped={},
        encoded=True,
        norms=torch.linalg.vector_norm(rows, dim=1),
        pre=rows,
    )


def material(**changed):
    parts = {"train": split(200, 0), "validation": split(80, 1), "measured": split(120, 2)}
    names = ["ant", "bee", "cow", "dog"]
    classifier = functional.normalize(CENTRES.roll(1, 0), dim=1)
    return Material(**{**parts, **changed}, names=names, classifier=classifier, title="clouds", seed=3)


def heads():
    return {"logistic": Logistic(), "neighbours": Neighbours(ks=[1, 5, 20])}


def test_it_measures_every_head_beside_zero_shot():
    found = LinearProbeFull(heads(), curve=[1, 4, 999])(material())
    top1 = found.metrics["top1"].value
    assert top1 > 0.8
    assert found.metrics["neighbours_top1"].value > 0.7
    assert found.metrics["difference"].value == pytest.approx(top1 - found.metrics["zero_shot_top1"].value)
    assert found.details["heads"]["logistic"]["fits"] <= 16
    assert found.details["train_images"] == 200
    json.dumps(found.details)
    assert [row[0] for row in found.tables["learning_curve"].rows] == [1, 4]
    swept = {row[1]: row[2] for row in found.tables["sweep"].rows if row[0] == "logistic"}
    chosen = found.details["heads"]["logistic"]["c"]
    assert swept[chosen] == max(swept.values())
    assert chosen == min(c for c, share in swept.items() if share == max(swept.values()))
    assert len(found.tables["per_class"].rows) == 4
    assert set(found.figures) == {"probe", "confusion"}
    assert len(found.figures["probe"].axes) == 4


def test_the_value_found_is_fitted_on_train_and_validation():
    from clipx.adapters.logistic import LogisticPath

    parts = [(each.pre, each.labels) for each in (split(40, 0), split(40, 1))]
    logits, found = Logistic().fit(*parts, 4)
    rows = torch.cat([each[0] for each in parts]), torch.cat([each[1] for each in parts])
    expected = LogisticPath(*rows, 4).fit(found["c"]).logits(rows[0])
    assert torch.allclose(logits(rows[0]).softmax(1), expected.softmax(1), atol=5e-3)
    alone, _ = Logistic(refit=False).fit(*parts, 4)
    assert not torch.allclose(alone(rows[0]).softmax(1), expected.softmax(1), atol=2e-2)


def test_the_test_split_chooses_nothing():
    plain = LinearProbeFull(heads(), curve=[])(material())
    other = LinearProbeFull(heads(), curve=[])(material(measured=split(120, 9)))
    assert plain.details == other.details
    assert plain.tables["sweep"] == other.tables["sweep"]


@pytest.mark.parametrize("bank", ["image", "raw", "pre_projection"])
def test_banks(bank):
    found = LinearProbeFull({"logistic": Logistic()}, bank=bank, curve=[])(material())
    assert found.details["row_length"]["mean"] == pytest.approx(1.0 if bank == "image" else 3.6, rel=0.4)
    assert found.metrics["top1"].value > 0.7


def test_heads_by_gradient_descent():
    head = StochasticHeads(rates=[1e-6, 0.5], steps=150, batch_size=64)
    train, validation = split(200, 0), split(80, 1)
    logits, found = head.fit((train.pre, train.labels), (validation.pre, validation.labels), 4, seed=0)
    assert found["rate"] == 0.5
    test = split(120, 2)
    assert float((logits(test.pre).argmax(1) == test.labels).double().mean()) > 0.8


def test_one_step_of_the_heads_is_that_of_autograd():
    from clipx.probes.many_heads import train_heads

    rows, labels = split(8, 0).pre, torch.arange(8) % 4
    weight, bias = train_heads(rows, labels, 4, rates=[0.7], steps=1, batch_size=8, seed=5)
    start = 0.01 * torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(5))
    linear = start[0].clone().requires_grad_(), torch.zeros(4, requires_grad=True)
    functional.cross_entropy(rows @ linear[0].T + linear[1], labels).backward()
    rate = 0.7 * 8 / 256
    assert torch.allclose(weight[0], start[0] - rate * linear[0].grad, atol=1e-7)
    assert torch.allclose(bias[0], -rate * linear[1].grad, atol=1e-7)


def test_digits_as_pixels():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    rows = torch.from_numpy(data.data[order]).float()
    labels = torch.from_numpy(data.target[order])
    train, validation = (rows[:900], labels[:900]), (rows[900:1200], labels[900:1200])
    for head, least in ((Logistic(), 0.95), (Neighbours(ks=[10]), 0.96)):
        logits, _ = head.fit(train, validation, 10, seed=0)
        assert float((logits(rows[1200:]).argmax(1) == labels[1200:]).double().mean()) >= least


def test_what_cannot_be_measured():
    unlabelled = split(40, 4, labels=torch.full((40,), -1))
    for part in ("train", "validation", "measured"):
        with pytest.raises(ClipxError, match="has a label"):
            LinearProbeFull(heads())(material(**{part: unlabelled}))
    alike = split(40, 4, labels=torch.zeros(40, dtype=torch.long))
    with pytest.raises(ClipxError, match="1 class"):
        LinearProbeFull(heads())(material(train=alike))
    with pytest.raises(ClipxError, match="k=500 neighbours among 200"):
        LinearProbeFull({"neighbours": Neighbours(ks=[500])})(material())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logistic(cs=[]), "no grid"),
        (lambda: Logistic(cs=[1.0, 0.1]), "no grid"),
        (lambda: Logistic(cs=[0.0, 0.1]), "no grid"),
        (lambda: Logistic(max_iter=0), "max_iter"),
        (lambda: Neighbours(ks=[]), "no number of neighbours"),
        (lambda: Neighbours(ks=[0]), "ks is 0"),
        (lambda: StochasticHeads(rates=[]), "no learning rate"),
        (lambda: StochasticHeads(rates=[-1.0]), "rates is"),
        (lambda: LinearProbeFull({}), "no head"),
        (lambda: LinearProbeFull(heads(), bank="tokens"), "unknown bank"),
        (lambda: LinearProbeFull(heads(), curve=[0]), "curve is 0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ClipxError, match=message):
        make()
