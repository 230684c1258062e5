"""Entailment: published angles, the geometry of cones, gradients at their edges, the schedule of K."""

import math
from types import SimpleNamespace

import pytest
import torch
import worlds

from clipx.errors import ClipxError
from clipx.models.geometry import Geometry
from clipx.objectives.entailment import Entailment, entailment, outside_cone
from clipx.objectives.infonce import info_nce

IMAGES = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64) / math.sqrt(3)
TEXTS = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64) / math.sqrt(3)


def test_angles_are_those_of_the_paper():
    wide, narrow = outside_cone(TEXTS, IMAGES, 0.3), outside_cone(TEXTS, IMAGES, 0.1)
    assert wide.tolist() == pytest.approx([1.233560, 1.127080, 0.877218], abs=1e-6)
    assert narrow.tolist() == pytest.approx([1.597523, 1.497255, 1.115231], abs=1e-6)
    squared = Geometry("euclidean-squared", 3).double()
    contrast = info_nce(IMAGES, TEXTS, math.exp(-1), compare=squared)
    assert contrast.item() == pytest.approx(0.969975, abs=1e-6)
    assert 0.2 * entailment(TEXTS, IMAGES, 0.1).item() == pytest.approx(0.280667, abs=1e-6)


@pytest.mark.parametrize("curvature", [None, 0.2, 3.0])
def test_what_lies_behind_a_caption_is_inside_and_what_lies_before_it_is_not(curvature):
    parent = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
    child = torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.05, 0.3]], dtype=torch.float64)
    found = outside_cone(parent, child, 0.1, curvature)
    assert found[0] < 0
    assert found[1] > math.pi / 2
    assert 0 < found[2] < found[1]
    wider = outside_cone(parent, child, 0.2, curvature)
    assert (wider < found).all()
    bare = outside_cone(parent, child, 0.0, curvature)
    assert bare[0].item() == pytest.approx(0, abs=1e-5)
    assert bare[1].item() == pytest.approx(math.pi, abs=1e-5)


def test_a_nearly_flat_hyperboloid_has_the_angles_of_the_plane():
    flat, curved = (outside_cone(TEXTS, IMAGES, 0.0, curvature) for curvature in (None, 1e-6))
    torch.testing.assert_close(curved, flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("curvature", [None, 1.3])
def test_gradients_are_exact_and_finite_at_the_edges(curvature):
    rows = (TEXTS.clone().requires_grad_(), IMAGES.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda *each: outside_cone(*each, 0.1, curvature), rows)
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor([[0.05, 0.0], [0.0, 0.0], [0.5, 0.0]], dtype=dtype, requires_grad=True)
        y = torch.tensor([[0.05, 0.0], [0.3, 0.0], [0.9, 0.0]], dtype=dtype, requires_grad=True)
        outside_cone(x, y, 0.1, curvature).sum().backward()
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()


def encoded(kind, progress=0.0, notes=None):
    return SimpleNamespace(
        comparison=Geometry(kind, 3).double(),
        image=lambda: IMAGES,
        text=lambda: TEXTS,
        progress=progress,
        note=(notes if notes is not None else {}).__setitem__,
    )


def test_the_radius_moves_with_the_training_and_what_is_inside_is_noted():
    objective = Entailment(min_radius=0.1, final_min_radius=0.5)
    for progress, radius in ((0.0, 0.1), (0.5, 0.3), (1.0, 0.5)):
        found = objective(encoded("euclidean-squared", torch.tensor(progress)))["entailment"]
        assert found.item() == pytest.approx(entailment(TEXTS, IMAGES, radius).item(), rel=1e-6)
    curved = Entailment()(encoded("hyperbolic"))["entailment"]
    assert curved.item() == pytest.approx(entailment(TEXTS, IMAGES, 0.1, 1.0).item())
    notes = {}
    Entailment(min_radius=9.0)(encoded("euclidean", notes=notes))
    expected = (outside_cone(TEXTS, IMAGES, 9.0) <= 0).float().mean()
    assert 0 < expected < 1
    assert notes["inside_cone"] == expected


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="min_radius=-1"):
        Entailment(-1)
    for kind in ("clip", "elliptic"):
        with pytest.raises(ClipxError, match=f"by {kind} has none"):
            Entailment()(encoded(kind))


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "compared")
