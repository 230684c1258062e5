"""The figures of the modality gap against the sheet's case and closed forms, in float64."""

import math

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.probes import geometry

IMAGES = functional.normalize(torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64), dim=1)
TEXTS = functional.normalize(
    torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64), dim=1
)
PAIRS = torch.tensor([[0, 0], [1, 1], [2, 2]])


def test_the_case_of_the_paper():
    assert float(geometry.uniformity(IMAGES)[0]) == pytest.approx(-2.047597, abs=1e-6)
    assert float(geometry.uniformity(TEXTS)[0]) == pytest.approx(-1.852940, abs=1e-6)
    assert float(geometry.alignment(IMAGES, TEXTS, PAIRS).mean()) == pytest.approx(0.041421, abs=1e-6)
    assert float(geometry.cross_uniformity(IMAGES, TEXTS, PAIRS)[0]) == pytest.approx(-1.889127, abs=1e-6)
    assert float(geometry.centroid_distance(IMAGES, TEXTS)) == pytest.approx(0.112306, abs=1e-6)
    assert float(geometry.paired_cosines(IMAGES, TEXTS, PAIRS).mean()) == pytest.approx(0.979289, abs=1e-6)


def test_several_texts_an_image_and_several_images_a_text():
    texts = IMAGES[:2]
    pairs = torch.tensor([[0, 0], [1, 1], [2, 0], [2, 1]])
    # Image 2 is at 1/sqrt(3) from both texts, which are its own; images 0 and 1 are at 0 from each other's.
    margins = geometry.margins(IMAGES, texts, pairs)
    assert margins[:2].tolist() == pytest.approx([1, 1])
    assert margins[2:].tolist() == [math.inf, math.inf]
    assert float(geometry.unpaired_cosine(IMAGES, texts, pairs)) == pytest.approx(0)
    assert float(geometry.cross_uniformity(IMAGES, texts, pairs)[0]) == pytest.approx(-4)


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows, other = (
        functional.normalize(torch.randn(40, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    pairs = torch.stack([torch.arange(40), torch.arange(40).flip(0)], 1)

    def everything():
        uniform, cross = geometry.uniformity(rows), geometry.cross_uniformity(rows, other, pairs)
        return torch.cat([torch.stack([*uniform, *cross]), geometry.margins(rows, other, pairs)])

    whole = everything()
    monkeypatch.setattr(geometry, "_AT_ONCE", 40 * 7)
    assert torch.allclose(everything(), whole, atol=1e-12)


def test_the_error_of_uniformity_is_that_of_new_rows():
    generator = torch.Generator().manual_seed(0)
    draws = [
        geometry.uniformity(functional.normalize(torch.randn(60, 3, generator=generator) + 0.5, dim=1))
        for _ in range(200)
    ]
    values, errors = (torch.stack(each) for each in zip(*draws, strict=True))
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.25)


def test_effective_rank_counts_directions():
    corners = torch.cat([torch.eye(4, dtype=torch.float64), -torch.eye(4, dtype=torch.float64)])
    assert float(geometry.effective_rank(corners)) == pytest.approx(4)
    assert float(geometry.effective_rank(corners + 7)) == pytest.approx(4)
    assert float(geometry.effective_rank(torch.ones(5, 3))) == pytest.approx(1)
    stretched = corners * torch.tensor([3.0, 1, 0, 0])
    assert float(geometry.effective_rank(stretched)) == pytest.approx(4 / 3**0.75)  # entropy of (3/4, 1/4)
    assert geometry.explained_variance(stretched).tolist() == pytest.approx([0.9, 1, 1, 1])


def test_gradients_pass_where_vectors_meet():
    rows = IMAGES[[0, 0, 1]].clone().requires_grad_()
    geometry.uniformity(rows)[0].backward()
    assert rows.grad.isfinite().all()


def test_what_has_no_pairs_is_refused():
    with pytest.raises(ClipxError, match="two rows"):
        geometry.uniformity(IMAGES[:1])
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    for figure in (geometry.cross_uniformity, geometry.unpaired_cosine):
        with pytest.raises(ClipxError, match="every image belongs to every text"):
            figure(IMAGES, TEXTS, everything)


def test_agreement_of_ranks_is_spearmans_of_each_row_without_its_own_entry():
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    images, texts = (
        functional.normalize(torch.randn(12, 3, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    texts[4] = texts[5]  # ties
    pairs = torch.tensor([[0, 1], [3, 2], [3, 4], [7, 5], [9, 8], [11, 11]])
    image, text = images[pairs[:, 0]], texts[pairs[:, 1]]
    found = geometry.rank_agreement(images, texts, pairs)
    squares = ((image @ image.T, text @ text.T), (image @ text.T, text @ image.T))
    for values, (one, other) in zip(found, squares, strict=True):
        for row in range(6):
            kept = [column for column in range(6) if column != row]
            expected = spearmanr(one[row, kept], other[row, kept]).statistic
            assert float(values[row]) == pytest.approx(expected, abs=1e-12)


def test_agreement_of_ranks_at_its_ends():
    generator = torch.Generator().manual_seed(0)
    rows = functional.normalize(torch.randn(9, 4, generator=generator, dtype=torch.float64), dim=1)
    pairs = torch.arange(9)[:, None].expand(9, 2)
    for values in geometry.rank_agreement(rows, rows, pairs):
        torch.testing.assert_close(values, torch.ones(9, dtype=torch.float64))
    alike = torch.ones_like(rows) / 2
    assert geometry.rank_agreement(rows, alike, pairs)[0].tolist() == [0] * 9
