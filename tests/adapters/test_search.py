import torch

from clipx.adapters.search import ZeroShotEnsemble, first_best, hits, linspace


def test_of_equal_cells_the_first_wins():
    counts = torch.tensor([[1, 3, 2], [3, 3, 0]])
    assert first_best(counts, 6) == ((0, 1), 0.5)
    assert first_best(torch.zeros(2, 2, dtype=torch.int64), 6) is None


def test_the_grid_counts_what_the_ensemble_predicts():
    generator = torch.Generator().manual_seed(0)
    zero, *corrections = torch.randn(4, 500, 7, generator=generator)
    labels = torch.randint(0, 7, (500,), generator=generator)
    alphas = [0.0, 0.5, 3.0]
    counts = ZeroShotEnsemble.grid(zero, iter(corrections), labels, alphas)
    assert counts.tolist() == [
        [int(hits(ZeroShotEnsemble(alpha)(zero, correction), labels)) for alpha in alphas]
        for correction in corrections
    ]


def test_rows_come_in_parts(monkeypatch):
    zero, correction = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    whole = ZeroShotEnsemble.grid(zero, [correction], labels, [1.0, 2.0])
    monkeypatch.setattr("clipx.adapters.search._CELLS_AT_ONCE", 40)
    assert torch.equal(ZeroShotEnsemble.grid(zero, [correction], labels, [1.0, 2.0]), whole)


def test_of_equal_logits_the_first_counts():
    assert int(hits(torch.ones(2, 3), torch.tensor([0, 1]))) == 1


def test_linspace_has_both_ends():
    assert linspace(1, 3, 5) == [1, 1.5, 2, 2.5, 3]
