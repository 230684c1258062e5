import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.models.surgery.token_drop import attentive_patches, encode_kept, random_patches, transfer


def test_the_published_masks():
    rising = torch.arange(196.0).view(1, 14, 14)
    kept = attentive_patches(rising)
    assert kept.shape == (1, 100)
    removed = torch.ones(196, dtype=torch.bool)
    removed[kept[0]] = False
    assert removed.sum() == 96
    assert removed.view(14, 14).sum(1).tolist() == [14] * 6 + [6] * 2 + [0] * 6


def test_blocks_are_means_and_the_highest_are_kept():
    rows = [[0.1, 0.2, 0, 0.4], [0.3, 0.2, 0.1, 0.5], [0.9, 0.1, 0.3, 0.3], [0.2, 0, 0.2, 0.8]]
    map_ = torch.tensor([rows])
    # The means are [[.2, .25], [.3, .4]]: of four blocks one and one more.
    assert attentive_patches(map_, share=0.25).tolist() == [[8, 9, 10, 11, 12, 13, 14, 15]]
    assert attentive_patches(map_, share=0.1).tolist() == [[10, 11, 14, 15]]
    assert attentive_patches(map_, share=1.0).tolist() == [[*range(16)]]
    assert attentive_patches(map_, share=0.1, block=1).tolist() == [[8, 15]]


def test_at_random_as_many_are_kept_and_each_as_often():
    torch.manual_seed(0)
    kept = random_patches(400, (8, 8))
    assert kept.shape == (400, attentive_patches(torch.rand(1, 8, 8)).shape[1]) == (400, 36)
    assert (kept.diff(dim=1) > 0).all()
    often = torch.bincount(kept.flatten(), minlength=64) / 400
    assert (often - 36 / 64).abs().max() < 5 * (0.25 / 400) ** 0.5


def test_a_crop_of_everything_sees_the_map_itself():
    maps = torch.rand(3, 7, 5)
    whole = torch.tensor([[0.0, 0, 1, 1]]).expand(3, -1)
    torch.testing.assert_close(transfer(maps, whole, (7, 5)), maps)


def test_crops_see_what_resizing_cutting_and_resizing_again_gives():
    torch.manual_seed(0)
    maps = torch.rand(2, 14, 14, dtype=torch.float64)
    boxes = torch.tensor([[224, 112, 896, 560], [0, 448, 672, 1120]], dtype=torch.float64)
    found = transfer(maps, boxes / 1120, (14, 14))
    for map_, box, seen in zip(maps, boxes.int().tolist(), found, strict=True):
        left, top, right, bottom = box
        large = functional.interpolate(map_[None, None], (1120, 1120), mode="bilinear")
        cut = functional.interpolate(large[..., top:bottom, left:right], (14, 14), mode="bilinear")[0, 0]
        torch.testing.assert_close(seen, cut, atol=0.01, rtol=0)


@torch.no_grad()
def test_a_tower_that_keeps_all_is_itself_and_one_that_keeps_some_knows_their_places():
    torch.manual_seed(0)
    visual = load("tiny-vit").eval().double().model.visual
    given = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    everything = torch.arange(64).expand(2, -1)
    torch.testing.assert_close(encode_kept(visual, given, everything) @ visual.proj, visual(given))
    some = torch.tensor([[3, 9, 40], [0, 1, 63]])
    found = encode_kept(visual, given, some)
    torch.testing.assert_close(found, encode_kept(visual, given, some.flip(1)))  # a set, in any order
    # What was left out does not count; what was kept does.
    changed = given.clone()
    changed[0, :, :5, :5] = 0  # patch 0
    again = encode_kept(visual, changed, some)
    torch.testing.assert_close(again[0], found[0])
    changed[1, :, :5, :5] = 0
    assert not torch.allclose(encode_kept(visual, changed, some)[1], found[1])


@pytest.mark.parametrize(
    ("grid", "share", "block", "said"),
    [((7, 8), 0.5, 2, "do not divide a grid of 7 x 8"), ((8, 8), 0.0, 2, "share"), ((8, 8), 1.1, 2, "share")],
)
def test_mistakes_are_named(grid, share, block, said):
    with pytest.raises(ClipxError, match=said):
        attentive_patches(torch.rand(1, *grid), share, block)
    with pytest.raises(ClipxError, match=said):
        random_patches(1, grid, share, block)
