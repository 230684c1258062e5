import copy

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.attention import attended
from clipx.models.loading import load
from clipx.models.surgery.token_drop import attentive_patches, encode_kept, transfer
from clipx.objectives.attentive_mask import AttentiveMask
from clipx.objectives.infonce import info_nce
from clipx.objectives.simclr import nt_xent
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

SMALL = {"hidden": 16, "width": 8}
HALF = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return load("tiny-vit")


def batch(clip, count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    captions = [f"a {colour} circle" for colour in ("red", "green", "blue", "pink")[:count]]
    size = (count, 3, clip.image_size, clip.image_size)
    fields = ("image", "image_view_1", "image_view_2", "cover_view")
    found = {field: torch.randint(256, size, generator=generator).byte() for field in fields}
    return {**found, "text": clip.tokenize(captions), "view_boxes": HALF.expand(count, -1, -1)}


def test_the_loss_is_the_sum_that_is_written(vit):
    torch.manual_seed(2)
    objective = AttentiveMask(vit, simclr=0.7, byol=3.0, temperature=0.2, **SMALL)
    given, visual = batch(vit), vit.model.visual
    found = objective(Encoded(vit, given))
    with torch.no_grad():
        slow = attended(objective.slow_tower.module, vit.normalize(given["cover_view"]))
        views = []
        for number in (1, 2):
            seen = transfer(slow.map(), given["view_boxes"][:, number - 1], (8, 8))
            images = vit.normalize(given[f"image_view_{number}"])
            views.append(encode_kept(visual, images, attentive_patches(seen)))
        text = vit.encode_text(given["text"])
        rows = [functional.normalize(view @ visual.proj, dim=-1) for view in views]
        infonce = [info_nce(each, text, vit.logit_scale) for each in rows]
        torch.testing.assert_close(found["infonce"].detach(), sum(infonce) / 2)
        heads = copy.deepcopy(objective)  # batch norms count what they have seen
        one, other = heads.contrasted(torch.cat(views)).chunk(2)
        torch.testing.assert_close(found["simclr"].detach(), 0.7 * nt_xent(one, other, 0.2))
        wanted = heads.slow_projector(visual._pool(slow.hidden)[0])
        guessed = heads.predictor(heads.projector(torch.cat(views)))
        cosines = functional.cosine_similarity(guessed, torch.cat([wanted, wanted]), dim=-1)
        torch.testing.assert_close(found["byol"].detach(), 3.0 * (2 - 2 * cosines).mean())


def test_views_of_other_halves_keep_other_patches(vit):
    seen = transfer(torch.arange(64.0).view(1, 8, 8).expand(2, -1, -1), HALF, (8, 8))
    left, right = seen
    assert (left < right).all()


def test_no_gradient_reaches_the_slow_copy_and_the_rest_learns(vit):
    torch.manual_seed(2)
    objective = AttentiveMask(vit, **SMALL).train()
    sum(objective(Encoded(vit, batch(vit))).values()).backward()
    names = {name for name, value in objective.named_parameters() if value.grad is not None}
    assert names == {name for name, _ in objective.named_parameters() if not name.startswith("slow")}
    assert vit.model.visual.class_embedding.grad.abs().sum() > 0
    vit.zero_grad()


def test_the_slow_copy_follows_slower_and_slower(vit):
    clip = copy.deepcopy(vit)
    objective = AttentiveMask(clip, **SMALL)
    with torch.no_grad():
        clip.model.visual.proj += 1
        objective.projector[0].weight += 1
    before = objective.slow_tower.module.proj.clone()
    objective.after_step(clip, 0.0)
    torch.testing.assert_close(objective.slow_tower.module.proj - before, torch.full_like(before, 0.004))
    head = objective.slow_projector.module[0].weight
    moved = objective.projector[0].weight - head
    torch.testing.assert_close(moved, torch.full_like(moved, 0.996))
    kept = objective.slow_tower.module.proj.clone()
    objective.after_step(clip, 1.0)
    assert torch.equal(objective.slow_tower.module.proj, kept)


def test_it_asks_for_what_it_uses(vit):
    views = {"text", "image_view_1", "image_view_2"}
    assert {*AttentiveMask(vit, **SMALL).needs} == {*views, "cover_view", "view_boxes"}
    assert {*AttentiveMask(vit, mode="random", **SMALL).needs} == {*views, "cover_view"}
    alone = AttentiveMask(vit, mode="random", simclr=0, byol=0)
    assert {*alone.needs} == views
    assert [*alone.parameters()] == []
    assert [*alone(Encoded(vit, batch(vit)))] == ["infonce"]


def test_all_patches_are_the_tower_itself(vit):
    given = batch(vit)
    found = AttentiveMask(vit, mode="none", simclr=0, byol=0)(Encoded(vit, given))["infonce"]
    encoded = Encoded(vit, given)
    wanted = [
        info_nce(encoded.image(f"image_view_{number}"), encoded.text(), vit.logit_scale) for number in (1, 2)
    ]
    torch.testing.assert_close(found, sum(wanted) / 2)


def test_a_smaller_crop_is_seen_on_a_coarser_grid(vit):
    objective = AttentiveMask(vit, cover_scale=0.5, **SMALL)
    _, maps = objective._looked_at(Encoded(vit, batch(vit)))
    assert maps.shape == (4, 4, 4)
    assert all(loss.isfinite() for loss in objective(Encoded(vit, batch(vit))).values())


def test_half_precision_towers(vit):
    module = TrainingModule(vit, {"attentive_mask": AttentiveMask(vit, **SMALL)})
    given = batch(vit)
    exact = module(given)["infonce"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = module(given)
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert losses["infonce"].item() == pytest.approx(exact, rel=0.02)
    losses["loss"].backward()
    assert all(value.grad.isfinite().all() for value in module.parameters() if value.grad is not None)
    vit.zero_grad()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "attention"}, "no mode 'attention'"),
        ({"block": 3}, "do not divide"),
        ({"share": 0}, "share"),
        ({"byol": -1}, "byol is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"momentum": 2}, "momentum is 2"),
        ({"cover_scale": 0}, "cover_scale is 0"),
    ],
)
def test_mistakes_are_named(vit, values, said):
    with pytest.raises(ClipxError, match=said):
        AttentiveMask(vit, **values)


def test_a_resnet_is_refused(micro_resnet):
    with pytest.raises(ClipxError, match="attentive-mask needs a ViT"):
        AttentiveMask(micro_resnet)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "attentive-mask")
