import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, drawn, mean_accuracy
from torch.nn import functional

from clipx.adapters.kernels import exp_cos
from clipx.adapters.proker import ProKeR
from clipx.adapters.proker_clap import ProKeRCLAP
from clipx.adapters.tip_adapter import TipAdapter
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.errors import ClipxError


def test_untrained_it_is_the_published_case_of_proker():
    adapter = ProKeRCLAP(beta=1, lam=0.5, steps=0).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    assert (adapter.logits(QUERY)[0] / 100).tolist() == pytest.approx((0.780909, 0.671708), abs=5e-7)
    torch.testing.assert_close(adapter.prototypes_, TEXT)


def test_training_is_the_published_loop():
    given = {"beta": 1.0, "lam": 0.5, "weight_decay": 0.0, "batch_size": 4, "warm_up": 0}
    adapter = ProKeRCLAP(**given, steps=1, lr=0.01).fit(SHOTS, LABELS, TEXT, logit_scale=5)
    kernel = exp_cos(SHOTS @ SHOTS.T, 1.0)
    inverse = torch.linalg.inv(kernel / 0.5 + torch.eye(4).double())
    wanted = functional.one_hot(LABELS).double()
    prototypes = TEXT.clone().requires_grad_()
    unit = functional.normalize(prototypes, dim=-1)
    residual = (wanted - SHOTS @ unit.T).detach()
    # At the texts the penalty has no slope, and AdamW's first step goes by the sign of it.
    functional.cross_entropy(5 * (SHOTS @ unit.T + kernel @ inverse @ residual), LABELS).backward()
    slope = prototypes.grad
    moved = functional.normalize(TEXT - 0.01 * slope / (slope.abs() + 1e-8), dim=-1)
    torch.testing.assert_close(adapter.prototypes_, moved)
    answer = QUERY @ moved.T + exp_cos(QUERY @ SHOTS.T, 1.0) @ inverse @ (wanted - SHOTS @ moved.T)
    torch.testing.assert_close(adapter.logits(QUERY), 5 * answer)


def test_beta_and_lam_are_those_of_proker():
    features, labels, text, queries = drawn()
    validation = (queries, torch.arange(30) % 5)
    start = ProKeR().fit(features, labels, text, logit_scale=100, validation=validation)
    adapter = ProKeRCLAP(steps=0).fit(features, labels, text, logit_scale=100, validation=validation)
    assert (adapter.beta_, adapter.lam_) == (start.beta_, start.lam_) != (1.0, 0.5)
    torch.testing.assert_close(adapter.logits(queries), 100 * start.logits(queries))


def test_featurebench():
    ours = mean_accuracy(lambda: ProKeRCLAP(steps=300), 4)
    assert ours > mean_accuracy(TipAdapter, 4) + 10


def test_rows_are_views_unless_averaged_and_may_be_too_many():
    features, labels, text, _ = drawn()
    groups = torch.arange(20) // 2
    given = {"logit_scale": 100, "groups": groups}
    assert len(ProKeRCLAP(steps=0).fit(features, labels, text, **given).keys_) == 20
    averaged = ProKeRCLAP(steps=0, views="average", max_rows=19).fit(features, labels, text, **given)
    assert len(averaged.keys_) == 10
    with pytest.raises(ClipxError, match="20 rows are too many") as caught:
        ProKeRCLAP(steps=0, max_rows=19).fit(features, labels, text, **given)
    assert "random_features" not in caught.value.hint


def test_new_classes_are_zero_shot():
    features, labels, text, queries = drawn()
    adapter = ProKeRCLAP(steps=2).fit(features, labels, text, logit_scale=100)
    assert torch.equal(adapter.for_classes(text).logits(queries), zero_shot_logits(queries, text, 100))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"lam": 0}, "lam is 0"),
        ({"beta_grid": (1, 2)}, r"must be \[first, last, number\]"),
        ({"lam_grid": (0, 1, 3)}, "lam_grid is 0"),
        ({"views": "some"}, "unknown views"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"lr": 0}, "lr is 0"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        ProKeRCLAP(**given)
