import copy

import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.models.locking import lock
from clipx.models.surgery.shared_trunk import share_trunk


def free(clip):
    return {name for name, parameter in clip.model.named_parameters() if parameter.requires_grad}


def test_each_part_is_locked_by_itself(micro):
    names = free(micro)
    image = {name for name in names if name.startswith("visual.")}
    assert free(lock(copy.deepcopy(micro), image=True)) == names - image
    assert free(lock(copy.deepcopy(micro), text=True)) == image | {"logit_scale"}
    assert free(lock(copy.deepcopy(micro), scale=True)) == names - {"logit_scale"}
    assert free(lock(copy.deepcopy(micro), first_convolution=True)) == names - {"visual.conv1.weight"}
    assert free(lock(copy.deepcopy(micro))) == names


def test_a_number_locks_nothing(micro):
    with pytest.raises(ClipxError, match=r"lock\.scale=100 must be true or false"):
        lock(copy.deepcopy(micro), scale=100)


def test_the_patch_convolution_gets_no_gradient(micro):
    clip = lock(copy.deepcopy(micro), first_convolution=True)
    clip.encode_image(torch.randn(2, 3, 32, 32)).sum().backward()
    assert clip.model.visual.conv1.weight.grad is None
    assert clip.model.visual.class_embedding.grad is not None


def test_a_locked_resnet_keeps_its_statistics_while_the_rest_trains(micro_resnet):
    def moved(clip):
        before = copy.deepcopy(clip.state_dict())
        clip.train()
        clip.encode_image(torch.randn(8, 3, 32, 32))
        return {name for name, value in clip.state_dict().items() if not torch.equal(value, before[name])}

    statistics = moved(copy.deepcopy(micro_resnet))
    assert "model.visual.bn1.running_mean" in statistics
    locked = lock(copy.deepcopy(micro_resnet), image=True)
    assert moved(locked) == set()
    assert locked.training
    assert not locked.model.visual.bn1.training


def test_batch_norm_keeps_its_statistics_while_its_tower_trains(micro, micro_resnet):
    clip = lock(copy.deepcopy(micro_resnet), batch_norm=True)
    assert "visual.conv1.weight" in free(clip)
    assert not [name for name in free(clip) if ".bn" in name or "downsample.1" in name]
    before = copy.deepcopy(clip.state_dict())
    clip.train()
    clip.encode_image(torch.randn(8, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert clip.model.visual.conv1.weight.grad is not None
    assert free(lock(copy.deepcopy(micro), batch_norm=True)) == free(micro)


def test_a_tower_without_a_convolution(micro):
    clip = copy.deepcopy(micro)
    clip.model.visual = nn.Linear(2, 2)
    with pytest.raises(ClipxError, match="no convolution"):
        lock(clip, first_convolution=True)


@pytest.mark.parametrize("part", ["image", "text"])
def test_what_towers_share_is_locked_with_either(micro, part):
    clip = copy.deepcopy(micro)
    share_trunk(clip.model)
    lock(clip, **{part: True})
    free = {name for name, parameter in clip.model.named_parameters() if parameter.requires_grad}
    own = {
        "image": {"positional_embedding", "token_embedding.weight", "logit_scale"},
        "text": {"logit_scale"}
        | {f"visual.{name}" for name in ("class_embedding", "positional_embedding", "conv1.weight")}
        | {"visual.ln_pre.weight", "visual.ln_pre.bias"},
    }
    assert free == own[part]
