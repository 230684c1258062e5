import copy

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.imsep import IMSep, semantic_distance, separation
from clipx.objectives.infonce import info_nce
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])
MEANING = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)


class Given(Encoded):
    """A batch of embeddings, at a scale of 10."""

    logit_scale = 10.0

    def __init__(self, image=IMAGE, text=TEXT, **batch):
        self.batch, self._cache = batch, {"image": image, "text": text}


def drawn(n, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, n, d, generator=generator, dtype=torch.float64)
    return functional.normalize(rows, dim=-1).unbind()


def test_the_published_case():
    clip = 2 * info_nce(IMAGE, TEXT, 10.0)
    terms = IMSep()(Given(semantics=MEANING))
    assert set(terms) == {"separated_images", "separated_texts"}
    assert clip.item() == pytest.approx(0.085833, abs=5e-7)
    assert 0.5 * sum(terms.values()).item() == pytest.approx(0.008609, abs=5e-7)
    assert (clip + 0.5 * sum(terms.values())).item() == pytest.approx(0.094442, abs=5e-7)
    (images,) = IMSep(["image"])(Given(semantics=MEANING)).values()
    assert 0.5 * images.item() == pytest.approx(0.006519, abs=5e-7)
    plain = IMSep(semantic=False)(Given())
    assert 0.5 * sum(plain.values()).item() == pytest.approx(0.027010, abs=5e-7)


def test_captions_of_one_meaning_do_not_repel_however_near_they_lie():
    near = torch.stack([IMAGE[0], IMAGE[0], IMAGE[1]]).requires_grad_()
    same = unit([[1, 0], [1, 0], [0, 1]])
    text = torch.stack([TEXT[0], TEXT[0], TEXT[1]])
    distance = semantic_distance(same, same)
    assert distance.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    moved = near.detach().clone()
    moved[1] = unit([[1, 0.3, 0]])[0]
    row = separation(near[:1], text[:1], 10.0, distance=distance[:1], all_rows=near)
    other = separation(near[:1], text[:1], 10.0, distance=distance[:1], all_rows=moved)
    assert row.item() == other.item()
    assert separation(near[:1], text[:1], 10.0, all_rows=near) > row


def test_a_row_does_not_count_its_likeness_to_itself():
    image, text, semantics = drawn(4)
    distance = semantic_distance(semantics, semantics)
    whole = separation(image, text, 10.0, distance=distance)
    odd = distance + 7 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(separation(image, text, 10.0, distance=odd), whole)


def test_own_rows_among_more():
    image, text, semantics = drawn(6)
    distance = semantic_distance(semantics, semantics)
    parts = [
        separation(
            image[i : i + 3],
            text[i : i + 3],
            10.0,
            distance=distance[i : i + 3],
            all_rows=image,
            offset=i,
        )
        for i in (0, 3)
    ]
    torch.testing.assert_close(sum(parts) / 2, separation(image, text, 10.0, distance=distance))


def test_gradients():
    image, text, semantics = drawn(4)
    distance = semantic_distance(semantics, semantics)
    scale = torch.tensor(3.0, dtype=torch.float64)
    given = [each.requires_grad_() for each in (image, text, scale)]
    assert torch.autograd.gradcheck(lambda i, t, s: separation(i, t, s, distance=distance), given)


def test_needs_what_captions_mean_where_it_is_weighed():
    assert "semantics" in IMSep().needs
    assert "semantics" not in IMSep(semantic=False).needs
    with pytest.raises(ClipxError, match="no field 'semantics'"):
        IMSep()(Given())


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="unknown side 'txt'") as caught:
        IMSep(["txt"])
    assert "text" in caught.value.hint
    with pytest.raises(ClipxError, match="no side"):
        IMSep([])
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        IMSep()(Given(IMAGE[:1], TEXT[:1], semantics=MEANING[:1]))


@pytest.mark.parametrize("case", ["imsep", "imsep plain"])
def test_processes_together_do_what_one_does_alone(processes, case):
    worlds.check_alone(processes, case)


def test_towers_in_bf16(micro):
    torch.manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8),
        "text": torch.randint(1, 1000, (5, 16)),
        "semantics": functional.normalize(torch.rand(5, 6), dim=-1),
    }
    module = TrainingModule(copy.deepcopy(micro), {"imsep": IMSep()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(batch)
    found["loss"].backward()
    assert {value.dtype for value in found.values()} == {torch.float32}
    for tower in (module.clip.model.visual.proj, module.clip.model.text_projection):
        assert tower.grad.isfinite().all()
        assert tower.grad.abs().sum() > 0
