import copy
from types import SimpleNamespace

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import info_nce
from clipx.objectives.listmle import list_mle
from clipx.objectives.rank_consistency import (
    RankConsistency,
    cross_modal_consistency,
    in_modal_consistency,
    ramp,
)
from clipx.training.module import TrainingModule


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0.1, 0], [0.2, 1, 0.3], [1, 1, 1], [0, 0.3, 1]])
TEXT = unit([[1, 0.2, 0.1], [0.1, 1, 0], [0.5, 1, 1], [0.1, 0.3, 1]])


def encoded(image=IMAGE, text=TEXT, progress=1 / 3, scale=10.0):
    return SimpleNamespace(
        image=lambda: image, text=lambda: text, logit_scale=scale, progress=torch.tensor(progress)
    )


def test_the_published_case():
    s, images, texts = 10 * IMAGE @ TEXT.T, 10 * IMAGE @ IMAGE.T, 10 * TEXT @ TEXT.T
    expected = {(s, s.T): 1.105902, (s.T, s): 1.792048, (images, texts): 0.604288, (texts, images): 1.052159}
    for (scores, truth), value in expected.items():
        assert list_mle(scores, truth).item() == pytest.approx(value, abs=5e-7)
    cross = cross_modal_consistency(IMAGE, TEXT, 10.0)
    within = in_modal_consistency(IMAGE, TEXT, 10.0)
    assert cross.item() == pytest.approx(1.105902 + 1.792048, abs=1e-6)
    assert within.item() == pytest.approx(0.604288 + 1.052159, abs=1e-6)


def test_the_terms_grow_with_the_training_and_shrink_with_the_batch():
    contrastive = info_nce(IMAGE, TEXT, 10.0).item()
    at = {progress: sum(RankConsistency()(encoded(progress=progress)).values()).item() for progress in
          (0.0, 1 / 3, 2 / 3, 0.9)}  # fmt: skip
    assert at[0.0] == 0
    assert at[1 / 3] == pytest.approx(0.035581, abs=5e-7)
    assert contrastive + at[2 / 3] == pytest.approx(0.269285, abs=1e-6)
    assert at[0.9] == at[2 / 3]
    assert ramp(0.25, 4, 3) == 1


def test_a_kind_of_ranking_can_be_left_out():
    both = RankConsistency()(encoded())
    for name, options in (
        ("cross_modal_ranks", {"in_modal": False}),
        ("in_modal_ranks", {"cross_modal": False}),
    ):
        assert RankConsistency(**options)(encoded()) == {name: both[name]}


def test_ties_are_shuffled_or_stay_in_order():
    image, text = IMAGE, TEXT[[0, 1, 1, 3]]
    torch.manual_seed(0)
    values = {sum(RankConsistency()(encoded(image, text)).values()).item() for _ in range(10)}
    steady = {
        sum(RankConsistency(shuffle_ties=False)(encoded(image, text)).values()).item() for _ in range(10)
    }
    assert len(values) > 1
    assert len(steady) == 1


@pytest.mark.parametrize("term", [cross_modal_consistency, in_modal_consistency])
def test_gradients(term):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    image, text = (rows.requires_grad_() for rows in functional.normalize(drawn, dim=-1).unbind())
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, t, s: term(i, t, s, eps=1e-3), (image, text, scale))


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="neither cross-modal nor in-modal"):
        RankConsistency(cross_modal=False, in_modal=False)
    with pytest.raises(ClipxError, match="slope=0"):
        RankConsistency(slope=0)
    with pytest.raises(ClipxError, match="eps is 1"):
        RankConsistency(eps=1)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        RankConsistency()(encoded(IMAGE[:1], TEXT[:1]))


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "rank consistency")


def test_towers_in_bf16(micro):
    torch.manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8),
        "text": torch.randint(1, 1000, (5, 16)),
    }
    module = TrainingModule(copy.deepcopy(micro), {"ranks": RankConsistency()})
    module.progress.fill_(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(batch)
    found["loss"].backward()
    assert {value.dtype for value in found.values()} == {torch.float32}
    for tower in (module.clip.model.visual.proj, module.clip.model.text_projection):
        assert tower.grad.isfinite().all()
        assert tower.grad.abs().sum() > 0
