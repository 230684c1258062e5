import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.projected_views import Projected
from clipx.objectives.sinkhorn_swap import SinkhornSwap, sinkhorn, swapped_assignments


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def views(n=4, d=5):
    generator = torch.Generator().manual_seed(0)
    return functional.normalize(torch.randn(4, n, d, generator=generator, dtype=torch.float64), dim=-1)


def test_the_published_case():
    found = sinkhorn(IMAGE @ TEXT.T)[2]
    expected = torch.tensor([0.002399, 0.000703, 0.996898], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-7)


def test_every_sample_is_assigned_and_every_prototype_gets_as_much():
    shares = sinkhorn(torch.rand(6, 6, dtype=torch.float64), epsilon=0.2, iterations=200)
    torch.testing.assert_close(shares.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(shares.sum(0), torch.ones(6, dtype=torch.float64))


def test_it_survives_a_small_temperature_in_single_precision():
    shares = sinkhorn(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), epsilon=0.005)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares, torch.eye(2))


def test_each_pair_of_views_learns_the_assignment_of_the_other():
    i1, i2, t1, t2 = views()
    images, texts = [i1, i2], [t1, t2]
    expected = []
    for k in range(2):
        for j in range(2):
            scores = images[k] @ texts[j].T, images[1 - k] @ texts[1 - j].T
            for logits, others in (scores, [each.T for each in scores]):
                targets = sinkhorn(others)
                expected.append(-(targets * (6 * logits).log_softmax(1)).sum(1).mean())
    assert len(expected) == 8
    found = swapped_assignments(images, texts, 6.0)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_gradients_flow_into_logits_alone():
    i1, i2, t1, t2 = views(3, 4)
    targets = [i2, t2]
    given = [each.clone().requires_grad_() for each in (i1, t1)]
    swapped_assignments([given[0], i2], [given[1], t2], 6.0).backward()
    # By hand, with the assignments as they are.
    again = [each.detach().clone().requires_grad_() for each in given]
    images, texts = [again[0], targets[0]], [again[1], targets[1]]
    assigned = {
        (k, j): [sinkhorn(images[k] @ texts[j].T), sinkhorn(texts[j] @ images[k].T)]
        for k in range(2)
        for j in range(2)
    }
    total = 0.0
    for k in range(2):
        for j in range(2):
            logits = 6 * images[k] @ texts[j].T
            to_text, to_image = assigned[1 - k, 1 - j]
            total = (
                total
                + functional.cross_entropy(logits, to_text)
                + functional.cross_entropy(logits.T, to_image)
            )
    (total / 8).backward()
    for one, other in zip(given, again, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


class Given:
    def __init__(self, label_smoothing):
        i1, i2, t1, t2 = views()
        self.views = Projected([i1, i2], [t1, t2], torch.tensor(6.0), label_smoothing)

    def given(self, name):
        assert name == "projected_views"
        return self.views


def test_it_takes_the_views_and_their_temperature():
    i1, i2, t1, t2 = views()
    found = SinkhornSwap(epsilon=0.1, iterations=2)(Given(0.0))["swap"]
    torch.testing.assert_close(found, swapped_assignments([i1, i2], [t1, t2], 6.0, 0.1, 2))


def test_mistakes_are_named():
    i1, _, t1, t2 = views()
    with pytest.raises(ClipxError, match=r"label_smoothing=0\.1 of the same views"):
        SinkhornSwap()(Given(0.1))
    with pytest.raises(ClipxError, match="not 1 of images and 2 of texts"):
        swapped_assignments([i1], [t1, t2], 6.0)
    with pytest.raises(ClipxError, match=r"epsilon is 0\.001"):
        SinkhornSwap(epsilon=0.001)
    with pytest.raises(ClipxError, match="iterations is 0"):
        SinkhornSwap(iterations=0)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "swap")
