import math
import warnings

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.cloob import CLOOB, cloob, hopfield_retrieval, info_loob
from clipx.objectives.infonce import info_nce, one_sided_info_nce


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def drawn(n, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(2, n, d, generator=generator, dtype=torch.float64), dim=-1)


class Pairs:
    """Encoded pairs, of which the logit scale is 30."""

    logit_scale = torch.tensor(30.0, dtype=torch.float64)
    logit_bias = None

    def __init__(self, count=40):
        self.rows = [rows.requires_grad_() for rows in drawn(count).unbind()]

    def image(self):
        return self.rows[0]

    def text(self):
        return self.rows[1]


def test_the_published_case():
    assert cloob(IMAGE, TEXT, 30.0, 8.0).item() == pytest.approx(-0.677966, abs=5e-7)
    assert cloob(IMAGE, TEXT, 30.0, 14.3).item() == pytest.approx(-0.781054, abs=5e-7)
    assert info_loob(IMAGE, TEXT, 10.0).item() == pytest.approx(-0.400002, abs=5e-7)
    recalled = hopfield_retrieval(IMAGE, IMAGE, 8.0)[2]
    assert recalled.tolist() == pytest.approx([0.588048, 0.588048, 0.555338], abs=5e-7)


def test_the_positive_is_in_no_denominator():
    anchors, positives = drawn(6)
    terms = []
    for i in range(6):
        others = sum(math.exp(7 * float(anchors[i] @ positives[j])) for j in range(6) if j != i)
        terms.append(math.log(others) / 7 - float(anchors[i] @ positives[i]))
    assert info_loob(anchors, positives, 7.0).item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_each_side_is_contrasted_in_a_memory_of_its_own():
    image, text = drawn(6)
    images = [hopfield_retrieval(rows, image, 5.0) for rows in (image, text)]
    texts = [hopfield_retrieval(rows, text, 5.0) for rows in (text, image)]
    expected = info_loob(*images, 20.0) + info_loob(*texts, 20.0)
    torch.testing.assert_close(cloob(image, text, 20.0, 5.0), expected)
    torch.testing.assert_close(
        cloob(image, text, 20.0, None), info_loob(image, text, 20.0) + info_loob(text, image, 20.0)
    )


def test_without_retrieval_info_nce_is_twice_that_of_clip():
    image, text = drawn(6)
    torch.testing.assert_close(
        cloob(image, text, 9.0, None, contrast="info_nce"), 2 * info_nce(image, text, 9.0)
    )
    torch.testing.assert_close(
        cloob(image, text, 9.0, 5.0, contrast="info_nce"),
        one_sided_info_nce(*(hopfield_retrieval(rows, image, 5.0) for rows in (image, text)), 9.0)
        + one_sided_info_nce(*(hopfield_retrieval(rows, text, 5.0) for rows in (text, image)), 9.0),
    )


def test_retrieval_runs_from_the_mean_of_the_memory_to_its_nearest_row():
    queries, memory = drawn(9)
    mean = functional.normalize(memory.mean(0), dim=0)
    torch.testing.assert_close(
        hopfield_retrieval(queries, memory, 1e-9), mean.expand(9, -1), rtol=0, atol=1e-6
    )
    nearest = memory[(queries @ memory.T).argmax(1)]
    torch.testing.assert_close(hopfield_retrieval(queries, memory, 1e4), nearest, rtol=0, atol=1e-6)


def test_it_does_not_saturate_where_info_nce_does():
    image = torch.eye(4, dtype=torch.float64).requires_grad_()
    steep = torch.autograd.grad(info_loob(image, torch.eye(4, dtype=torch.float64), 30.0), image)[0]
    flat = torch.autograd.grad(one_sided_info_nce(image, torch.eye(4, dtype=torch.float64), 30.0), image)[0]
    assert flat.norm() < 1e-8
    assert steep.norm() > 0.1


def test_large_logits_keep_the_positive_out():
    rows = torch.eye(3).requires_grad_()
    loss = info_loob(rows, torch.eye(3), 1e5)
    loss.backward()
    assert loss.item() == pytest.approx(-1 + math.log(2) / 1e5)
    assert rows.grad.isfinite().all()


def test_gradients():
    image, text = (rows.requires_grad_() for rows in drawn(5, 4).unbind())
    scale, beta = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (6.0, 3.0))
    for contrast in ("info_loob", "info_nce"):
        assert torch.autograd.gradcheck(
            lambda *given, kind=contrast: cloob(*given, contrast=kind), (image, text, scale, beta)
        )


def test_own_rows_among_more_candidates():
    anchors, positives = drawn(8)
    for contrast in (info_loob, one_sided_info_nce):
        parts = [
            contrast(anchors[i : i + 4], positives[i : i + 4], 9.0, candidates=positives, offset=i)
            for i in (0, 4)
        ]
        torch.testing.assert_close(sum(parts) / 2, contrast(anchors, positives, 9.0))


def test_the_logit_scale_is_the_inverse_temperature():
    encoded = Pairs()
    (loss,) = CLOOB(beta=8.0)(encoded).values()
    torch.testing.assert_close(loss, cloob(*encoded.rows, 30.0, 8.0))


def test_a_beta_that_learns_stays_in_its_range():
    objective = CLOOB(beta=8.0, learn_beta=True)
    fixed = CLOOB(beta=8.0)(Pairs())["cloob"]
    loss = objective(Pairs())["cloob"]
    assert loss.item() == pytest.approx(fixed.item(), rel=1e-6)
    loss.backward()
    assert objective.log_beta.grad.abs() > 0
    with torch.no_grad():
        objective.log_beta.fill_(9.0)
    objective(Pairs())
    assert objective.beta.item() == pytest.approx(100)
    with torch.no_grad():
        objective.log_beta.fill_(-3.0)
    objective(Pairs())
    assert objective.beta.item() == pytest.approx(1)
    assert not list(CLOOB(beta=8.0).parameters())


def test_what_is_too_small_to_recall_from_is_warned_of():
    with pytest.warns(UserWarning, match="batch of 31 pairs is a poor memory"):
        CLOOB()(Pairs(31))
    with pytest.warns(UserWarning, match="near the mean"):
        CLOOB(beta=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLOOB()(Pairs(32))
        CLOOB(beta=None)(Pairs(31))


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        info_loob(IMAGE[:1], TEXT[:1], 30.0)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        cloob(IMAGE[:1], TEXT[:1], 30.0, 8.0, contrast="info_nce")
    with pytest.raises(ClipxError, match="no contrast 'infoloob'") as caught:
        CLOOB(contrast="infoloob")
    assert "did you mean 'info_loob'" in caught.value.hint
    for beta in (0, -8, math.nan, math.inf):
        with pytest.raises(ClipxError, match=f"beta={beta} must be above 0"):
            CLOOB(beta=beta)
    for beta in (None, 0.5, 101):
        with pytest.raises(ClipxError, match=f"beta={beta} cannot learn"):
            CLOOB(beta=beta, learn_beta=True)


@pytest.mark.filterwarnings("ignore:a batch of")
def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "cloob")
