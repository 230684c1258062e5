"""Parameters spread over two processes: the same steps, the same checkpoints, the same end."""

import fits
import pytest
import spread
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from fits import differing

from clipx.errors import ClipxError
from clipx.training.sharding import is_sharded, whole


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread")
    fits.spawn(spread.work, 2, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_every_process_holds_half_and_makes_the_same_steps(both):
    for found in both:
        assert found["parts"]
        assert all(0.3 < part < 0.7 for part in found["parts"])
        plain, apart = found["plain"], found["spread"]
        assert len(plain["losses"]) == len(apart["losses"]) == 6
        for one, other in zip(plain["losses"], apart["losses"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
            assert one["logit_scale"] == pytest.approx(other["logit_scale"], rel=1e-5)


def test_what_is_evaluated_and_saved_is_whole(both):
    first, second = both
    assert differing(first["spread"]["clip"], second["spread"]["clip"]) == []
    for found in both:
        state = found["spread"]["state"]
        assert all(
            torch.equal(value, state[f"module.clip.{name}"])
            for name, value in found["spread"]["clip"].items()
        )


def test_a_run_that_was_killed_ends_as_the_undisturbed_one_to_the_bit(both):
    for found in both:
        assert found["start"] == 4
        assert differing(found["spread"]["state"], found["resumed"]["state"]) == []
        assert found["spread"]["losses"] == found["resumed"]["losses"]


def test_a_gradient_cache_makes_the_same_steps(both):
    for found in both:
        for one, other in zip(found["spread"]["losses"], found["cached"]["losses"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_what_does_not_go_together_is_refused(both):
    for found in both:
        average, head, old = found["refused"]
        assert "training.ema does not go with FSDP" in average
        assert "training.gradient_cache does not go with FSDP" in head
        assert "first version of FSDP" in old


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_what_cannot_be_resumed_is_refused(monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ClipxError, match=f"training with {kind.value} cannot be resumed") as caught:
        is_sharded(object.__new__(Accelerator))
    assert "fsdp_version: 2" in caught.value.hint


def test_what_is_not_spread_is_whole():
    value = {"a": [torch.ones(2), 3], "b": "text"}
    assert whole(value) == value
