"""What the cards of DeCLIP and of the improved baselines put together."""

import pytest
import torch

from clipx.config import compose, resolve
from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.models.loading import load
from clipx.recipes.parts import build_objectives, build_optimizer
from clipx.training.module import TrainingModule

TERMS = {
    "declip": {"multi_view", "siam", "mlm", "nn"},
    "improved-baselines": {"infonce", "projected"},
    "barlip": {"infonce", "projected", "barlow"},
    "siamlip": {"infonce", "projected", "siam"},
    "byolip": {"infonce", "projected", "siam"},
    "swalip": {"infonce", "projected", "swap"},
}
FIGURES = {"siam_std", "nn_known", "nn_age", "projected_scale"}


def settings_of(card, *overrides):
    return resolve(compose("pretrain", ["model=micro", *overrides], method=card))


def built(card, *overrides):
    settings = settings_of(card, *overrides)
    torch.manual_seed(0)
    clip = load(**settings.model)
    objectives, weights = build_objectives(settings.objectives, {"clip": lambda: clip})
    return TrainingModule(clip, objectives, weights).train()


def batch_of(module):
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for field in module.needs:
        if field in IMAGE_FIELDS:
            batch[field] = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
        if field in TOKEN_FIELDS:
            batch[field] = module.clip.tokenize([f"{field} number {row} of the red ones" for row in range(8)])
    return batch


@pytest.mark.parametrize("card", TERMS)
def test_the_loss_is_the_weighted_sum_and_reaches_every_parameter(card):
    module = built(card)
    found = module(batch_of(module))
    assert set(found) - FIGURES - {"loss"} == TERMS[card]
    expected = sum(module.weights[term] * found[term] for term in TERMS[card])
    torch.testing.assert_close(found["loss"], expected)
    found["loss"].backward()
    # DistributedDataParallel waits for the gradient of each.
    missing = [name for name, each in module.named_parameters() if each.requires_grad and each.grad is None]
    assert missing == []
    optimizer = build_optimizer(settings_of(card).optim, module)
    slow = {name: each.clone() for name, each in module.named_parameters() if ".slow_" in name}
    optimizer.step()
    module.after_step(0.5)
    state = dict(module.named_parameters())
    assert (card == "byolip") == bool(slow)
    assert all(not each.requires_grad for name, each in state.items() if name in slow)
    moved = [name for name, each in slow.items() if not torch.equal(each, state[name])]
    assert len(moved) >= 0.9 * len(slow)


def test_declip_weighs_its_terms_as_published():
    assert built("declip").weights == {"multi_view": 0.4, "siam": 0.2, "mlm": 0.2, "nn": 0.2}


def test_the_temperature_of_declip_stays_above_its_lower_bound():
    module = built("declip")
    with torch.no_grad():
        module.clip.model.logit_scale.fill_(0.0)
    module.clip.clamp_logit_scale()
    assert module.clip.model.logit_scale.item() == pytest.approx(3.0)


def test_terms_of_declip_can_be_left_out():
    module = built(
        "declip", "~objectives.mlm", "~objectives.nn", "objectives.multi_view.texts=[text,text_view_1]"
    )
    assert set(module(batch_of(module))) == {"multi_view", "siam", "siam_std", "loss"}
    assert module.needs == ["image_view_1", "image_view_2", "text", "text_view_1"]


def test_masked_captions_pass_the_tower_once_and_whole_ones_not_at_all():
    module = built("declip")
    passes = []
    module.clip.model.transformer.register_forward_hook(lambda *_: passes.append(1))
    module(batch_of(module))
    assert len(passes) == 2  # masked, and changed
