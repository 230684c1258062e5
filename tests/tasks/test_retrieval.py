import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from clipx.errors import ClipxError
from clipx.tasks.retrieval import distinct_texts, group_pairs, rank, retrieval


def dot(images, texts):
    return images @ texts.T


def values(*args, **kwargs):
    return {name: estimate.value for name, estimate in retrieval(*args, **kwargs).items()}


@pytest.fixture
def drawn():
    """30 images, 80 texts, several right answers each way, one text that nobody has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(30, 16, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(80, 16, generator=generator), dim=1)
    chooser = np.random.default_rng(0)
    pairs = [
        (image, text)
        for text in range(79)
        for image in chooser.choice(30, chooser.integers(1, 4), replace=False)
    ]
    return images, texts, np.array(pairs)


def test_agrees_with_scikit_learn(drawn):
    images, texts, pairs = drawn
    relevant = np.zeros((30, 80), dtype=bool)
    relevant[pairs[:, 0], pairs[:, 1]] = True
    scores = dot(images, texts).numpy()
    found = values(dot, images, texts, pairs)
    for way, matrix, right in (("image_to_text", scores, relevant), ("text_to_image", scores.T, relevant.T)):
        answered = right.any(1)
        matrix, right = matrix[answered], right[answered]
        precisions = [average_precision_score(r, s) for r, s in zip(right, matrix, strict=True)]
        assert found[f"{way}_map"] == pytest.approx(np.mean(precisions), abs=1e-9)
        order = np.argsort(-matrix, axis=1)
        first = np.take_along_axis(right, order, 1).argmax(1) + 1
        assert found[f"{way}_median_rank"] == np.median(first)
        for k in (1, 5, 10):
            assert found[f"{way}_recall@{k}"] == pytest.approx((first <= k).mean())


def test_by_hand():
    """Image 0 has texts 0 and 1, image 1 has text 2; the scores are chosen, not computed."""
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.7]])
    found = values(
        lambda i, t: scores[i.long()][:, t.long()], torch.arange(2), torch.arange(3), [(0, 0), (0, 1), (1, 2)]
    )
    assert found["image_to_text_recall@1"] == 0.5
    assert found["image_to_text_median_rank"] == 1.5
    assert found["image_to_text_map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert found["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert found["text_to_image_map"] == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_chunks_do_not_matter(drawn, at_once):
    assert retrieval(dot, *drawn, at_once=at_once) == retrieval(dot, *drawn)


def test_order_does_not_matter(drawn):
    images, texts, pairs = drawn
    image_order, text_order = torch.randperm(30), torch.randperm(80)
    moved = np.stack(
        [torch.argsort(image_order).numpy()[pairs[:, 0]], torch.argsort(text_order).numpy()[pairs[:, 1]]], 1
    )
    shuffled = np.random.default_rng(1).permutation(moved)
    assert values(dot, images[image_order], texts[text_order], shuffled) == pytest.approx(
        values(dot, images, texts, pairs)
    )


def test_a_constant_embedding_finds_nothing():
    images = torch.nn.functional.normalize(torch.randn(1, 48), dim=1).repeat(64, 1)
    pairs = np.stack([np.arange(64)] * 2, 1)
    found = values(lambda i, t: 100 * i @ t.T, images, images.clone(), pairs, at_once=5)
    assert found["image_to_text_recall@10"] == 0
    assert found["text_to_image_median_rank"] == 64
    assert found["image_to_text_map"] == pytest.approx(1 / 64)


def test_identity_finds_everything():
    found = values(dot, torch.eye(20), torch.eye(20), np.stack([np.arange(20)] * 2, 1))
    assert {name for name, value in found.items() if value == 1} == set(found)


def test_queries_without_an_answer_are_passed_over_but_distract():
    scores = torch.tensor([[0.1, 0.9], [0.3, 0.2]])
    ranking = rank(lambda rows: scores[rows], 2, 2, np.array([0]), np.array([0]))
    assert ranking.best_ranks.tolist() == [2]


def test_a_pair_counts_once(drawn):
    images, texts, pairs = drawn
    assert retrieval(dot, images, texts, np.concatenate([pairs, pairs])) == retrieval(
        dot, images, texts, pairs
    )


def test_scores_come_from_the_model(drawn):
    images, texts, pairs = drawn
    far = values(lambda i, t: -torch.cdist(i, t), images, texts, pairs)
    assert far == pytest.approx(values(dot, images, texts, pairs))  # same order for unit vectors
    assert values(lambda i, t: -dot(i, t), images, texts, pairs) != values(dot, images, texts, pairs)


def test_the_way_of_an_uneven_score_is_kept():
    """A score that prefers text 0 for every image is a constant image-to-text, but orders images well."""
    images, texts = torch.tensor([[0.9], [0.5]]), torch.tensor([[1.0], [0.4]])
    found = values(dot, images, texts, [(0, 0), (1, 1)])
    assert found["image_to_text_recall@1"] == 0.5
    assert found["text_to_image_recall@1"] == 0.5


def test_distinct_texts():
    texts, pairs = distinct_texts([["a", "b"], ["b", "b"], [], ["c"]])
    assert texts == ["a", "b", "c"]
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 1], [3, 2]]
    assert distinct_texts([[], []])[1].shape == (0, 2)


def test_group_pairs():
    images, texts = [5, 7, 5, 9], [7, 5, 5, 8]
    expected = [[i, t] for i in range(4) for t in range(4) if images[i] == texts[t]]
    assert sorted(group_pairs(images, texts).tolist()) == expected


@pytest.mark.parametrize(
    ("pairs", "message"),
    [([], "no image has a caption"), ([(0, 9)], "outside"), ([(-1, 0)], "outside")],
)
def test_what_cannot_be_measured_is_named(pairs, message):
    with pytest.raises(ClipxError, match=message):
        retrieval(dot, torch.eye(3), torch.eye(3), pairs)


def test_nan_scores_are_an_error():
    with pytest.raises(ClipxError, match="not finite"):
        retrieval(dot, torch.full((3, 3), float("nan")), torch.eye(3), [(0, 0)])
