import torch
from bench import SHOTS, drawn

from clipx.adapters.kernels import draw_rff, exp_cos, rbf, rff


def test_on_the_sphere_both_kernels_are_one():
    rows, _, others, _ = drawn()
    torch.testing.assert_close(rbf(rows, others, 3.0), exp_cos(rows @ others.T, 3.0))
    torch.testing.assert_close(rbf(SHOTS, SHOTS, 2.0).diagonal(), torch.ones(4).double())


def test_random_features_approach_the_kernel():
    rows, *_ = drawn()
    frequencies, phases = draw_rff(rows.shape[1], 20000, beta=2.0, seed=0, like=rows)
    mapped = rff(rows, frequencies, phases)
    torch.testing.assert_close(mapped @ mapped.T, exp_cos(rows @ rows.T, 2.0), atol=0.04, rtol=0)
