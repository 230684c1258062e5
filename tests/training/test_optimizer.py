import math

import fits
import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.training.optimizer import check_schedule, parameter_groups, schedule_factor, set_learning_rate


def factors(steps, **settings):
    return [schedule_factor(step, steps, **settings) for step in range(steps)]


def test_matrices_decay_and_gains_biases_and_the_scale_do_not():
    module = fits.TrainingModule(fits.clip(init_logit_bias=-10.0), {"infonce": fits.InfoNCE()})
    decayed, plain = parameter_groups(module, 0.2)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    undecayed = {names[id(parameter)].split("clip.model.")[1] for parameter in plain["params"]}
    assert {"logit_scale", "logit_bias", "ln_final.weight", "visual.class_embedding"} <= undecayed
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    (group,) = parameter_groups(module, 0.1)
    assert group["params"] == [module.bias]
    module.bias.requires_grad_(False)
    with pytest.raises(ClipxError, match="frozen"):
        parameter_groups(module, 0.1)


def test_layers_learn_the_slower_the_deeper_they_lie():
    module = nn.ModuleDict({"stem": nn.Linear(2, 2), "block": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    distances = {
        f"{name}.{kind}": far for name, far in (("stem", 2), ("block", 1)) for kind in ("weight", "bias")
    }
    groups = parameter_groups(module, 0.1, lr=0.4, layer_decay=0.5, distances=distances)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.4, 0.1),
        (0.4, 0.0),
        (0.2, 0.1),
        (0.2, 0.0),
        (0.1, 0.1),
        (0.1, 0.0),
    ]
    assert groups[0]["params"] == [module["head"].weight]
    assert groups[5]["params"] == [module["stem"].bias]
    for decay in (0, 1.5, -1):
        with pytest.raises(ClipxError, match="layer_decay"):
            parameter_groups(module, 0.1, lr=0.4, layer_decay=decay)


def test_the_backbone_learns_slower_than_its_head():
    module = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("stem", "top", "head")})
    distances = {"stem.weight": 1, "top.weight": 0}

    def rates(**given):
        groups = parameter_groups(module, 0.1, lr=0.4, backbone_decay=0.1, distances=distances, **given)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        return {names[id(each)]: group["lr"] for group in groups for each in group["params"]}

    found = rates(layer_decay=0.5)
    assert found == pytest.approx({"stem.weight": 0.02, "top.weight": 0.04, "head.weight": 0.4})
    found = rates()
    assert found == pytest.approx({"stem.weight": 0.04, "top.weight": 0.04, "head.weight": 0.4})
    for decay in (0, 1.5):
        with pytest.raises(ClipxError, match="backbone_decay"):
            parameter_groups(module, 0.1, backbone_decay=decay)


def test_matrices_that_are_named_do_not_decay():
    module = fits.clip()
    decayed, plain = parameter_groups(module, 0.1, undecayed=["positional_embedding"])
    positions = [module.model.visual.positional_embedding, module.model.positional_embedding]
    assert {id(each) for each in positions} <= {id(each) for each in plain["params"]}
    assert not {id(each) for each in positions} & {id(each) for each in decayed["params"]}


def test_cosine_after_warm_up():
    found = factors(8, name="cosine", warmup=4)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])
    assert found[6] == pytest.approx(0.5)


def test_constant_and_cooldown():
    assert factors(4, name="constant", warmup=2) == [0.5, 1.0, 1.0, 1.0]
    assert factors(8, name="cooldown", warmup=0, cooldown=4) == [1.0] * 5 + [0.75, 0.5, 0.25]


def test_cosines_that_start_again():
    found = factors(10, name="cosine-restarts", warmup=2, cycles=2)
    one = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert found == pytest.approx([0.5, 1.0, *one, *one])
    single = factors(10, name="cosine-restarts", warmup=2, cycles=1)
    assert single == factors(10, name="cosine", warmup=2)


@pytest.mark.parametrize(("steps", "warmup", "cycles"), [(1000, 37, 10), (997, 0, 7), (59, 10, 49)])
def test_every_cosine_starts_at_the_full_rate_wherever_rounding_falls(steps, warmup, cycles):
    found = factors(steps, name="cosine-restarts", warmup=warmup, cycles=cycles)[warmup:]
    rises = [place for place in range(1, len(found)) if found[place] > found[place - 1]]
    expected = [math.ceil(number * (steps - warmup) / cycles) for number in range(1, cycles)]
    if steps - warmup == cycles:  # of one step each
        assert set(found) == {1.0}
    else:
        assert rises == expected
        assert all(found[place] > 0.9 for place in rises)


def test_restarts_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = transformers.get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 4, 24, num_cycles=5)
    theirs = []
    for _ in range(24):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = factors(24, name="cosine-restarts", warmup=4, cycles=5)
    assert found[4:] == pytest.approx(theirs[4:])


def test_the_learning_rate_is_base_times_factor_in_every_group():
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 0.4)]
    )
    set_learning_rate(optimizer, [0.1, 0.4], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.2]


@pytest.mark.parametrize(
    ("name", "warmup", "cooldown", "said"),
    [
        ("cosin", 0, 0, "no schedule 'cosin'"),
        ("cosine", 11, 0, "training.warmup=11"),
        ("cosine", -1, 0, "training.warmup=-1"),
        ("cooldown", 4, 7, "training.cooldown=7"),
        ("cooldown", 4, 0, "schedule=cooldown with training.cooldown=0"),
        ("cosine", 4, 2, "schedule=cosine with training.cooldown=2"),
        ("cosine", 4, -2, "training.cooldown=-2"),
    ],
)
def test_a_schedule_that_cannot_be(name, warmup, cooldown, said):
    with pytest.raises(ClipxError, match=said):
        check_schedule(name, warmup, cooldown, 10)


@pytest.mark.parametrize(
    ("name", "cycles", "said"),
    [
        ("cosine-restarts", 0, "schedule=cosine-restarts with training.cycles=0"),
        ("cosine", 3, "schedule=cosine with training.cycles=3"),
        ("cosine-restarts", 7, "training.cycles=7 must lie between 0 and 6"),
        ("cosine", -1, "training.cycles=-1 must"),
    ],
)
def test_cycles_that_cannot_be(name, cycles, said):
    with pytest.raises(ClipxError, match=said):
        check_schedule(name, 4, 0, 10, cycles)


def test_a_misspelt_schedule_gets_its_neighbour():
    with pytest.raises(ClipxError) as caught:
        check_schedule("cosin", 0, 0, 10)
    assert "did you mean 'cosine'" in caught.value.hint
