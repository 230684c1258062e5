import itertools
import math

import pytest
import torch

from clipx.objectives.listmle import list_mle


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(n, m, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, n, m, generator=generator, dtype=torch.float64)


def test_the_published_case():
    assert list_mle(rows([3, 1, 2]), rows([0.1, 0.3, 0.2])).item() == pytest.approx(3.720868, abs=5e-7)


def test_it_is_the_likelihood_of_an_order_under_softmax_after_softmax():
    scores, truth = drawn(1, 4)
    order = truth[0].argsort(descending=True).tolist()
    chance = {}
    for each in itertools.permutations(range(4)):
        left, product = list(each), 1.0
        for item in each:
            product *= math.exp(scores[0, item]) / sum(math.exp(scores[0, other]) for other in left)
            left.remove(item)
        chance[each] = product
    assert sum(chance.values()) == pytest.approx(1)
    expected = -math.log(chance[tuple(order)])
    assert list_mle(scores, truth, eps=0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-10, 1e-3])
def test_only_the_order_of_the_truth_counts_and_a_mean_over_lists(eps):
    scores, truth = drawn(3, 5)
    whole = list_mle(scores, truth, eps=eps)
    torch.testing.assert_close(list_mle(scores, torch.exp(3 * truth) - 1, eps=eps), whole)
    parts = [list_mle(scores[i : i + 1], truth[i : i + 1], eps=eps) for i in range(3)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    moved = list_mle(scores + torch.tensor([[1.0], [-2.0], [40.0]]), truth, eps=eps)
    torch.testing.assert_close(moved, whole)


def test_a_truth_of_minus_one_is_an_item_like_any_other():
    scores = rows([3, 1, 2])
    assert list_mle(scores, rows([0.3, -1, 0.2])) == list_mle(scores, rows([0.3, 0.1, 0.2]))


def test_eps_is_a_floor_where_scores_spread_far():
    scores, truth = rows([60, 0, 1]), rows([3, 2, 1])
    # What is left after the first item weighs exp(-59) and exp(-60) of it; eps is more than both.
    second, third = math.log(1e-10) + 60, math.log(1e-10) + 59
    assert list_mle(scores, truth).item() == pytest.approx(second + third, rel=1e-9)
    assert list_mle(scores, truth, eps=0).item() == pytest.approx(math.log1p(math.e), rel=1e-9)
    large = rows([100, -100, 0]).float().requires_grad_()
    list_mle(large, rows([1, 2, 3]), eps=0).backward()
    assert large.grad.isfinite().all()


def test_ties_follow_the_permutation():
    scores, truth = rows([3, 1, 2]), rows([0.2, 0.2, 0.1])
    one, other = list_mle(scores, rows([3, 2, 1])), list_mle(scores, rows([2, 3, 1]))
    assert one != other
    assert list_mle(scores, truth) == one
    assert list_mle(scores, truth, first=torch.tensor([0, 2, 1])) == one
    assert list_mle(scores, truth, first=torch.tensor([2, 1, 0])) == other
    scores, truth = drawn(4, 6)
    torch.testing.assert_close(list_mle(scores, truth, first=torch.randperm(6)), list_mle(scores, truth))


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_gradients(eps):
    scores, truth = (each.requires_grad_() for each in drawn(3, 4).unbind())
    assert torch.autograd.gradcheck(lambda s: list_mle(s, truth, eps=eps), (scores,))
    list_mle(scores, truth, eps=eps).backward()
    assert truth.grad is None
