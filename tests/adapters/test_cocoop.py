import open_clip
import pytest
import torch
from prompted import NAMES, SCALE, clip, encoded_as_published, fitted, published_steps, task
from torch.nn import functional

from clipx.adapters.cocoop import CoCoOp, conditional_logits, meta_net
from clipx.adapters.coop import CoOp
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.prompting import word_vectors
from clipx.models.tokenizer import small_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:trained for")


def test_the_shift_in_closed_form():
    rows = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).double()
    down, down_bias = torch.tensor([[1.0, 0.5]]).double(), torch.tensor([-0.7]).double()
    up, up_bias = torch.tensor([[2.0], [-1.0], [0.0]]).double(), torch.tensor([0.1, 0.2, 0.3]).double()
    found = meta_net(rows, down, down_bias, up, up_bias)
    assert found.tolist() == [pytest.approx([0.7, -0.1, 0.3]), pytest.approx([0.7, -0.1, 0.3])]
    closed = meta_net(rows, down, torch.tensor([-9.0]).double(), up, up_bias)
    assert closed.tolist() == [pytest.approx([0.1, 0.2, 0.3])] * 2


def test_every_image_has_class_vectors_of_its_own():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    text = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [1.0, 0.0]]]).double()
    assert conditional_logits(rows, text, 10.0).tolist() == [[10.0, 0.0], [8.0, 0.0]]


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_constant_network_is_coop_with_a_moved_context(value):
    *_, queries, _ = task()
    adapter = fitted(CoCoOp(epochs=0))
    shift = value * torch.linspace(-1, 1, 96, dtype=torch.float64)
    adapter.up_, adapter.up_bias_ = torch.zeros_like(adapter.up_), shift
    coop = fitted(CoOp(words="a photo of a", epochs=0))
    coop.context_ = coop.context_ + shift
    torch.testing.assert_close(adapter.logits(queries), coop.logits(queries), rtol=1e-9, atol=1e-9)


def test_parameters_are_as_many_as_published():
    torch.manual_seed(0)
    text_cfg = {"context_length": 16, "vocab_size": 1024, "width": 512, "heads": 8, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    preprocess = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = open_clip.CLIP(512, vision, text_cfg)
    wide = CLIP(model, small_tokenizer(1024, 16), {"text_cfg": text_cfg}, preprocess, "wide")
    rows = functional.normalize(torch.randn(4, 512), dim=-1)
    adapter = CoCoOp(n_ctx=4, words=None, epochs=0).fit(
        rows, torch.tensor([0, 1, 0, 1]), rows[:2], logit_scale=100.0, clip=wide, class_names=["a", "b"]
    )
    assert adapter.trained_parameters_ == 35_360
    assert adapter.down_.shape == (32, 512)


def test_training_is_the_published_loop():
    features, labels, _, _, _ = task()
    start = fitted(CoCoOp(epochs=0, batch_size=4, seed=1))
    adapter = fitted(CoCoOp(epochs=2, batch_size=4, seed=1))
    net = torch.nn.Sequential(torch.nn.Linear(128, 8), torch.nn.ReLU(), torch.nn.Linear(8, 96)).double()
    with torch.no_grad():
        for parameter, value in zip(
            net.parameters(), (start.down_, start.down_bias_, start.up_, start.up_bias_), strict=True
        ):
            parameter.copy_(value)
    context = word_vectors(clip(), "a photo of a")[0, 0].clone().requires_grad_()
    optimizer = torch.optim.SGD([context, *net.parameters()], lr=1, momentum=0.9, weight_decay=5e-4)
    for rate, rows in published_steps(len(labels), 2, 4, 1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = [SCALE * row @ encoded_as_published(context + net(row), NAMES).T for row in features[rows]]
        functional.cross_entropy(torch.stack(logits), labels[rows]).backward()
        optimizer.step()
    clip().zero_grad()
    assert float((adapter.context_ - start.context_).abs().max()) > 1e-4
    torch.testing.assert_close(adapter.context_[0, 0], context.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(adapter.up_, net[2].weight.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(adapter.down_, net[0].weight.detach(), rtol=1e-7, atol=1e-9)


def test_the_network_starts_as_a_linear_layer_does_and_not_at_nothing():
    adapter = fitted(CoCoOp(epochs=0))
    for weight, inputs in (
        (adapter.down_, 128),
        (adapter.down_bias_, 128),
        (adapter.up_, 8),
        (adapter.up_bias_, 8),
    ):
        assert 0.5 * inputs**-0.5 < float(weight.abs().max()) <= inputs**-0.5
    *_, queries, _ = task()
    zero_shot_like = fitted(CoOp(words="a photo of a", epochs=0)).logits(queries)
    assert not torch.allclose(adapter.logits(queries), zero_shot_like, atol=1e-3)


def test_the_image_moves_its_own_classifier():
    *_, queries, _ = task()
    adapter = fitted(CoCoOp(epochs=0))
    fixed = fitted(CoCoOp(epochs=0))
    fixed.up_ = torch.zeros_like(fixed.up_)
    logits = adapter.logits(queries)
    assert not torch.allclose(logits, fixed.logits(queries), atol=1e-3)
    one = fixed.logits(queries[:1])
    fixed.up_bias_ = meta_net(queries[:1], adapter.down_, adapter.down_bias_, adapter.up_, adapter.up_bias_)[
        0
    ]
    fixed.attach(clip())
    torch.testing.assert_close(fixed.logits(queries[:1]), logits[:1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(one, logits[:1], atol=1e-3)


def test_a_reduction_out_of_range_is_named():
    with pytest.raises(ClipxError, match="reduction is 0"):
        CoCoOp(reduction=0)
