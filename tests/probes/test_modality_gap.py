"""The modality-gap probe on clouds whose gap is known."""

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet
from clipx.probes.modality_gap import RECALLS, ModalityGap, separability, thinned
from clipx.probes.protocol import Material


def clouds(count=120, width=8, apart=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, width, generator=generator)
    noise = 0.2 * torch.randn(2, count, width, generator=generator)
    shift = torch.zeros(width)
    shift[0] = apart
    return tuple(
        functional.normalize(shared + own + sign * shift, dim=1)
        for own, sign in zip(noise, (1, -1), strict=True)
    )


def material(images, texts, pairs=None):
    count = len(images)
    features = FeatureSet(
        image=images,
        labels=torch.full((count,), -1),
        index=torch.arange(count),
        ids=[str(place) for place in range(count)],
        texts=[],
        pairs=torch.empty(0, 2, dtype=torch.long),
        text=None,
        skipped={},
        encoded=True,
    )
    own = torch.arange(count)[:, None].repeat(1, 2) if pairs is None else pairs
    return Material(measured=features, text=texts, pairs=own, logit_scale=100.0, title="clouds")


def test_a_gap_is_seen_and_none_is_not():
    near, far = (ModalityGap()(material(*clouds(apart=apart))).metrics for apart in (0.0, 3.0))
    assert near["centroid_distance"].value < 0.2
    assert far["centroid_distance"].value > 1.2
    assert near["separability"].value < 0.65
    assert far["separability"].value > 0.98
    assert far["alignment"].value > near["alignment"].value
    assert far["uniformity_image"].value > near["uniformity_image"].value
    assert far["effective_rank_image"].value < near["effective_rank_image"].value
    for metrics in (near, far):
        assert all(each.low <= each.value <= each.high for each in metrics.values())


def test_a_learnable_pairing_has_margins():
    images, texts = clouds()
    found = ModalityGap()(material(images, texts))
    turned = ModalityGap()(material(images, texts.flip(0)))
    for way in RECALLS:
        assert found.metrics[way].value > 0.5 > turned.metrics[way].value
    assert found.metrics["paired_cosine"].value > 0.8 > turned.metrics["paired_cosine"].value


def test_few_texts_beside_many_images_are_told_apart_all_the_same():
    images, texts = clouds(count=200, apart=3.0)
    assert separability(images, texts[:10]).value > 0.95
    same = clouds(count=200)
    assert separability(same[0], same[1][:10]).value == pytest.approx(0.5, abs=0.2)


def test_what_it_returns(tmp_path):
    from clipx.reports.figures import save

    found = ModalityGap(drawn=30)(material(*clouds()))
    assert found.details["samples"] == found.details["texts"] == found.details["pairs"] == 120
    table = found.tables["explained_variance"]
    assert table.rows[-1][1:] == pytest.approx([1, 1])
    figure = found.figures["modality_gap"]
    points = [len(each.get_offsets()) for each in figure.axes[0].collections]
    assert points == [30, 30, 2]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["images", "texts"]
    assert save(figure, tmp_path / "gap.png").stat().st_size > 10_000


def test_thinning_keeps_pairs_together():
    images, texts = torch.arange(10.0)[:, None], torch.arange(10.0)[:, None]
    pairs = torch.stack([torch.arange(10), torch.arange(10)], 1)
    rows, columns, own = thinned(images, texts, pairs, 4)
    assert len(rows) == len(columns) == 4
    assert torch.equal(rows[own[:, 0]], columns[own[:, 1]])
    shared = torch.tensor([[0, 3], [2, 3], [5, 7]])
    rows, columns, own = thinned(images, texts, shared, 100)
    assert (rows[:, 0].tolist(), columns[:, 0].tolist()) == ([0, 2, 5], [3, 7])
    assert own.tolist() == [[0, 0], [1, 0], [2, 1]]


def test_what_cannot_be_measured():
    images, texts = clouds()
    with pytest.raises(ClipxError, match="no image has a text"):
        ModalityGap()(material(images, texts, torch.empty(0, 2, dtype=torch.long)))
    with pytest.raises(ClipxError, match="1 image and 1 text"):
        ModalityGap()(material(images, texts, torch.tensor([[3, 3]])))
    for wrong in ({"samples": 3}, {"folds": 1}, {"drawn": 0}):
        with pytest.raises(ClipxError, match="must be"):
            ModalityGap(**wrong)
