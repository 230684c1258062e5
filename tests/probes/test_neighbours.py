import pytest
import torch

from clipx.errors import ClipxError
from clipx.probes.neighbours import nearest, neighbour_scores


def test_the_case_of_the_paper():
    similar = torch.tensor([[0.9, 0.8, 0.5, 0.1]], dtype=torch.float64)
    found = neighbour_scores(similar, torch.tensor([[0, 1, 1, 0]]), [1, 2, 3, 4], 2)
    expected = {1: [0.804531, 0], 2: [0.804531, 0.192807], 3: [0.804531, 0.195460], 4: [0.804540, 0.195460]}
    for k, scores in expected.items():
        assert found[k][0].tolist() == pytest.approx(scores, abs=1e-6)


def test_the_nearest_are_by_cosine(monkeypatch):
    rows = torch.tensor([[2.0, 0], [0, 3]])
    to = torch.tensor([[1.0, 1], [10, 1], [0, 0.1]])
    similar, places = nearest(rows, to, 2)
    assert places.tolist() == [[1, 0], [2, 0]]
    assert similar[1].tolist() == pytest.approx([1, 0.5**0.5])
    monkeypatch.setattr("clipx.probes.neighbours._AT_ONCE", 1)
    assert torch.equal(nearest(rows, to, 2)[1], places)


def test_more_neighbours_than_rows():
    with pytest.raises(ClipxError, match="k=4 neighbours among 3"):
        nearest(torch.eye(3), torch.eye(3), 4)
