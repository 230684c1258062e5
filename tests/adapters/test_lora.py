import pytest
import torch
from test_tower_training import embedded, fitted

from clipx.adapters.lora import LoRA
from clipx.errors import ClipxError


def test_it_keeps_two_factors_a_site(micro):
    adapter = fitted(LoRA(epochs=2, lr=1e-2, rank=3), micro)
    sites = [f"{tower}.0.{role}.0" for tower in ("image", "text") for role in "qkv"]
    assert set(adapter.weights_) == {f"{site}.{part}" for site in sites for part in ("up", "down")}
    assert adapter.weights_["text.0.v.0.down"].shape == (3, 32)
    assert adapter.weights_["text.0.v.0.up"].shape == (32, 3)


def test_what_it_learnt_is_added_to_the_rows_of_q_k_and_v(micro):
    adapter = fitted(LoRA(epochs=3, lr=1e-2, alpha=2.0, rank=4), micro)
    before = micro.model.transformer.resblocks[0].attn.in_proj_weight
    after = adapter.adapted(micro).model.transformer.resblocks[0].attn.in_proj_weight
    kept = adapter.weights_
    change = [kept[f"text.0.{role}.0.up"] @ kept[f"text.0.{role}.0.down"] for role in "qkv"]
    torch.testing.assert_close(after - before, torch.cat(change), atol=1e-6, rtol=0)  # 2 / sqrt(4) is 1
    assert float(torch.cat(change).abs().max()) > 1e-4


def test_dropout_is_there_in_training_alone(micro):
    with_it, without = (fitted(LoRA(epochs=2, lr=1e-2, dropout=dropout), micro) for dropout in (0.9, 0.0))
    assert not torch.allclose(with_it.weights_["text.0.v.0.up"], without.weights_["text.0.v.0.up"])
    rows = [embedded(with_it.adapted(micro))[0] for _ in range(2)]
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1}, "dropout is 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"scaling": "root"}, "unknown scaling 'root'"),
    ],
)
def test_settings_of_its_own_are_checked(given, message):
    with pytest.raises(ClipxError, match=message):
        LoRA(**given)
