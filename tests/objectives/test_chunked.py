import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from clipx.errors import ClipxError
from clipx.objectives.chunked import log_sums, row_log_sums, softplus_sum
from clipx.objectives.infonce import chunked_info_nce, info_nce
from clipx.objectives.siglip import sigmoid_loss

CHUNKS = [1, 2, 3, 5, 9, 40]
"""Of 9 rows: single ones, an even and an uneven end, all, more than all."""


def drawn(rows, columns=None, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    found = (
        torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for n in (rows, columns or rows)
    )
    return [functional.normalize(each, dim=-1).requires_grad_() for each in found]


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def gradients(loss, *inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)]


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_info_nce_is_the_dense_loss(chunk_size, label_smoothing):
    image, text = drawn(9)
    scale, bias = scalar(20.0), scalar(-3.0)
    dense = info_nce(image, text, scale, logit_bias=bias, label_smoothing=label_smoothing)
    lean = chunked_info_nce(
        image, text, scale, logit_bias=bias, label_smoothing=label_smoothing, chunk_size=chunk_size
    )
    expected, found = (gradients(loss, image, text, scale, bias) for loss in (dense, lean))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_info_nce_of_own_rows_among_more_candidates(chunk_size):
    all_image, all_text = drawn(9)
    scale = scalar(20.0)
    given = {"all_image": all_image, "all_text": all_text, "offset": 4, "label_smoothing": 0.1}
    dense = info_nce(all_image[4:7], all_text[4:7], scale, **given)
    lean = chunked_info_nce(all_image[4:7], all_text[4:7], scale, chunk_size=chunk_size, **given)
    expected, found = (gradients(loss, all_image, all_text, scale) for loss in (dense, lean))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("texts", "negative_only"), [(9, False), (9, True), (4, True)])
def test_sigmoid_is_the_dense_loss(chunk_size, texts, negative_only):
    image, text = drawn(9, texts)
    scale, bias = scalar(20.0), scalar(-10.0)
    expected, found = (
        gradients(
            sigmoid_loss(image, text, scale, bias, negative_only=negative_only, chunk_size=size),
            image,
            text,
            scale,
            bias,
        )
        for size in (0, chunk_size)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_gradients_of_the_sums():
    rows, columns = drawn(5, 4)
    assert torch.autograd.gradcheck(lambda *given: log_sums(*given, 2), (rows, columns))
    assert torch.autograd.gradcheck(lambda *given: log_sums(*given, 2)[1], (rows, columns))
    assert torch.autograd.gradcheck(lambda *given: row_log_sums(*given, 2), (rows, columns))
    assert torch.autograd.gradcheck(lambda *given: softplus_sum(*given, 2), (rows, columns, scalar(-1.0)))


def test_extreme_logits_stay_finite():
    image, text = drawn(6, dtype=torch.float32)
    for loss in (
        chunked_info_nce(image, text, 1e4, chunk_size=4),
        sigmoid_loss(image, text, 1e4, -1e4, chunk_size=4),
    ):
        assert all(torch.isfinite(each).all() for each in gradients(loss, image, text))


def test_a_scale_alone_can_learn():
    (image, text), scale = (rows.detach() for rows in drawn(9)), scalar(20.0)
    expected, found = (
        gradients(loss, scale)
        for loss in (info_nce(image, text, scale), chunked_info_nce(image, text, scale, chunk_size=2))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_half_precision_rows_are_scored_in_float32():
    image, text = (rows.detach().bfloat16() for rows in drawn(9))
    loss = chunked_info_nce(image, text, 100.0, chunk_size=4)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), info_nce(image.double(), text.double(), 100.0))


class Largest(TorchDispatchMode):
    """Notes the most numbers that any one operation, forward or backward, gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize(
    ("loss", "logits"),
    [
        (lambda *rows: info_nce(*rows, 10.0), 64),
        (lambda *rows: chunked_info_nce(*rows, 10.0, chunk_size=8), 8),
        (lambda *rows: chunked_info_nce(*rows, 10.0, chunk_size=8, all_text=rows[1] + 0), 8),
        (lambda *rows: sigmoid_loss(*rows, 10.0, -10.0), 64),
        (lambda *rows: sigmoid_loss(*rows, 10.0, -10.0, chunk_size=8), 8),
    ],
)
def test_no_operation_gives_and_no_graph_keeps_more_than_a_chunk(loss, logits):
    rows, kept = drawn(64, d=4), []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x)
    with Largest() as largest, hooks:
        loss(*rows).backward()
    assert largest.numbers == logits * 64
    assert max(kept) == (64 * 64 if logits == 64 else 64 * 4)


def test_mistakes_are_named():
    image, text = drawn(3)
    with pytest.raises(ClipxError, match="5 dimensions, text embeddings 2"):
        chunked_info_nce(image, text[:, :2], 10.0, chunk_size=2)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        chunked_info_nce(image[:1], text[:1], 10.0, chunk_size=2)
