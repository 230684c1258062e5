import warnings

import pytest
import torch
from test_tower_training import fitted

from clipx.adapters.clip_svd import CLIPSVD
from clipx.errors import ClipxError
from clipx.models.surgery.svd import decompose


def test_it_keeps_the_singular_values_and_nothing_else_moves(micro):
    adapter = fitted(CLIPSVD(epochs=3, lr=1e-2), micro)
    roles = ("q.0", "k.0", "v.0", "o.0", "mlp.0", "mlp.1")
    assert set(adapter.weights_) == {
        f"{tower}.0.{role}.values" for tower in ("image", "text") for role in roles
    }
    tower = adapter.adapted(micro)
    block, changed = (each.model.visual.transformer.resblocks[0] for each in (micro, tower))
    left, values, right = decompose(block.mlp.c_fc.weight)
    inside = left.T @ changed.mlp.c_fc.weight @ right.T
    torch.testing.assert_close(inside.diagonal(), adapter.weights_["image.0.mlp.0.values"], atol=1e-5, rtol=0)
    assert float((inside.detach() - inside.detach().diagonal().diag()).abs().max()) < 1e-5
    assert float((inside.diagonal() - values).detach().abs().max()) > 1e-3


def test_it_tells_how_far_they_went(micro):
    still = fitted(CLIPSVD(epochs=0), micro)
    assert still.moved_ == 0
    assert still.negative_ == 0
    some, far = (fitted(CLIPSVD(epochs=5, lr=lr), micro) for lr in (1e-3, 1e-1))
    assert 0 < some.moved_ < far.moved_
    before = torch.cat([decompose(micro.model.transformer.resblocks[0].mlp.c_fc.weight)[1]])
    only = fitted(CLIPSVD(epochs=5, lr=1e-2, towers=["text"], blocks=[0], targets=["mlp"]), micro)
    after = only.weights_["text.0.mlp.0.values"]
    assert float((after - before).norm() / before.norm()) == pytest.approx(only.moved_, rel=0.5)


def test_negative_singular_values_are_allowed_and_said(micro):
    with warnings.catch_warnings(record=True):
        adapter = fitted(CLIPSVD(epochs=20, lr=1.0), micro)
    below = sum(int((value < 0).sum()) for value in adapter.weights_.values())
    assert adapter.negative_ == below > 0


def test_a_share_trains_the_largest(micro):
    adapter = fitted(CLIPSVD(epochs=1, share=0.25), micro)
    assert all(len(value) == 8 for value in adapter.weights_.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0}, "share is 0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"parity_cyclic_lr": True}, "parity_cyclic_lr needs epochs"),
    ],
)
def test_settings_of_its_own_are_checked(given, message):
    with pytest.raises(ClipxError, match=message):
        CLIPSVD(**given)
