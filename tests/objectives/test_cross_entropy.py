import copy
import math
from types import SimpleNamespace

import pytest
import torch

from clipx.adapters.trained_head import TrainedHead
from clipx.errors import ClipxError
from clipx.models.locking import lock
from clipx.models.patches import lock_pooling, patch_mean
from clipx.objectives.cross_entropy import CrossEntropy
from clipx.training.gradient_cache import check_pooled
from clipx.training.module import TrainingModule


class Batch(SimpleNamespace):
    def image(self):
        return self.rows

    def __getitem__(self, field):
        return {"label": self.label}[field]


def drawn(start, *shape):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


def test_label_smoothing_as_the_paper_has_it():
    objective = CrossEntropy(torch.eye(5, dtype=torch.float64), label_smoothing=0.1)
    batch = Batch(rows=3 * drawn(33, 2, 5), label=torch.tensor([1, 3]))
    assert objective(batch)["cross_entropy"].item() == pytest.approx(1.915298, abs=1e-6)


def test_the_head_starts_as_the_zero_shot_classifier():
    classifier = 14.0 * torch.nn.functional.normalize(drawn(3, 4, 6), dim=-1)
    head = CrossEntropy(classifier).head
    rows = drawn(9, 2, 6)
    torch.testing.assert_close(head(rows), rows @ classifier.T)
    assert head.weight.requires_grad
    assert head.weight.data_ptr() != classifier.data_ptr()


def test_a_small_start_knows_no_class():
    torch.manual_seed(0)
    head = CrossEntropy(torch.ones(64, 64), init="small").head
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.15)
    assert head.weight.abs().max().item() <= 4e-5
    assert 0 < head.bias.abs().max().item() <= 0.001 / 64**0.5


def test_a_head_on_patches_is_a_norm_a_mean_and_a_linear_map(micro):
    torch.manual_seed(0)
    head = CrossEntropy(torch.zeros(5, 32), pool="patches", clip=micro).head
    assert head.linear.weight.std().item() == pytest.approx(2e-5, rel=0.15)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    patches = torch.randn(3, 7, head.linear.in_features)
    norm = torch.nn.LayerNorm(head.linear.in_features)
    norm.load_state_dict({"weight": head.gain.detach(), "bias": head.shift.detach()})
    expected = head.linear(norm(patches).mean(1))
    torch.testing.assert_close(head(patch_mean(patches)), expected)
    torch.testing.assert_close(TrainedHead.of(head, "patches").logits(patch_mean(patches)), expected)
    torch.nn.init.zeros_(head.linear.weight)
    assert torch.equal(head(torch.randn(2, head.linear.in_features)), head.linear.bias.expand(2, 5))


@pytest.mark.parametrize("tower", ["micro", "micro_resnet"])
def test_patches_are_taken_in_one_pass_and_train_all_but_the_convolution(tower, request, monkeypatch):
    clip = copy.deepcopy(request.getfixturevalue(tower)).train()
    objective = CrossEntropy(torch.zeros(3, 32), pool="patches", clip=clip)
    lock_pooling(lock(clip, text=True, scale=True, first_convolution=True))
    module = TrainingModule(clip, {"cross_entropy": objective})
    calls = []
    monkeypatch.setattr(clip, "encode_image", lambda *given: calls.append(given))
    batch = {"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), "label": torch.arange(4) % 3}
    module(batch)["loss"].backward()
    assert not calls
    assert clip.model.visual.conv1.weight.grad is None
    without = [name for name, each in module.named_parameters() if each.requires_grad and each.grad is None]
    assert not without
    assert objective.head.gain.grad is not None


def test_what_a_head_on_patches_cannot_do(micro):
    with pytest.raises(ClipxError, match="cannot start as the zero-shot classifier"):
        CrossEntropy(torch.eye(32), pool="patches", init="zero-shot", clip=micro)
    with pytest.raises(ClipxError, match="pooled embeddings"):
        check_pooled({"cross_entropy": CrossEntropy(torch.eye(32), pool="patches", clip=micro)})
    check_pooled({"cross_entropy": CrossEntropy(torch.eye(32))})


def test_with_zero_weights_the_output_is_the_bias():
    head = CrossEntropy(torch.zeros(3, 4)).head
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert head(torch.randn(1, 4)).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    "options", [{"init": "zeros"}, {"pool": "mean"}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}]
)
def test_options_out_of_range(options):
    with pytest.raises(ClipxError):
        CrossEntropy(torch.eye(2), **options)
