"""Geometries: published numbers, gradients where distances vanish, means and factors."""

import math

import pytest
import torch
from torch.nn import functional

from clipx.models.geometry import GEOMETRIES, Geometry, similarity, squares
from clipx.objectives.infonce import info_nce

IMAGES = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
TEXTS = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64)

PUBLISHED = {
    "clip": 0.782489,
    "euclidean": 0.741103,
    "euclidean-inner": 0.934016,
    "euclidean-squared": 0.772535,
    "hyperbolic": 0.731038,
}
"""Contrastive losses of the rows above at scale 1, of the code of the paper."""


def rows(geometry):
    return geometry.image_rows(IMAGES), geometry.text_rows(TEXTS)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_losses_are_those_of_the_paper(kind):
    geometry = Geometry(kind, 3).double()
    loss = info_nce(*rows(geometry), 1.0, compare=geometry)
    assert loss.item() == pytest.approx(PUBLISHED[kind], abs=1e-6)


def test_squared_distances_by_hand():
    geometry = Geometry("euclidean-squared", 3).double()
    found = geometry.image_to_text(*rows(geometry))[0]
    torch.testing.assert_close(
        found, torch.tensor([-0.04, -1.81, -2.25], dtype=torch.float64) / 3, rtol=1e-6, atol=0
    )


def test_the_lift_lies_on_the_hyperboloid_and_distances_on_its_geodesics():
    x = torch.tensor([[0.7, 0.0]], dtype=torch.float64)
    for curvature in (0.3, 1.0, 4.0):
        # Along a ray from the apex, the distance is that in the tangent space.
        for factor in (0.0, 0.5, -1.0):
            inner, square = factor * squares(x), squares(x)
            found = similarity("hyperbolic", inner, square, factor**2 * square, curvature)
            assert found.item() == pytest.approx(-0.7 * abs(1 - factor), rel=1e-6)
        own = similarity("hyperbolic-inner", squares(x), squares(x), squares(x), curvature)
        assert own.item() == pytest.approx(-1 / curvature)


def test_a_flat_hyperboloid_is_a_plane():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    arguments = (x @ y.T, squares(x)[:, None], squares(y)[None])
    for kind in ("hyperbolic", "hyperbolic-squared"):
        flat = similarity(kind.replace("hyperbolic", "euclidean"), *arguments)
        torch.testing.assert_close(similarity(kind, *arguments, 1e-7), flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_gradients_are_exact_and_finite_where_vectors_coincide(kind):
    geometry = Geometry(kind, 3, curvature=0.7).double()
    generator = torch.Generator().manual_seed(1)
    image, text = (
        torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )

    def scores(image, text):
        return geometry.image_to_text(geometry.image_rows(image), geometry.text_rows(text), 2.0)

    assert torch.autograd.gradcheck(scores, (image, text))
    same = text.detach().clone().requires_grad_()
    with torch.no_grad():
        same[1] = 0.0
    found = scores(same, same)
    found.diagonal().sum().backward()
    assert found.isfinite().all()
    assert same.grad.isfinite().all()
    half = geometry.float().image_to_text(*(geometry.image_rows(text.float()) for _ in range(2)), 2.0)
    assert half.isfinite().all()


def test_means_stay_on_the_sphere_and_nowhere_else():
    texts = TEXTS[None]
    for kind in GEOMETRIES:
        mean = Geometry(kind, 3).mean_of_texts(texts)
        on_sphere = kind in ("clip", "elliptic")
        expected = functional.normalize(TEXTS.mean(0), dim=0) if on_sphere else TEXTS.mean(0)
        torch.testing.assert_close(mean, expected[None])


def test_factors_and_curvature_start_as_published_and_stay_in_bounds():
    flat = Geometry("euclidean", 16)
    torch.testing.assert_close(flat.image_rows(IMAGES.float()), IMAGES.float() / 4)
    curved = Geometry("hyperbolic", 16, curvature=2.0, learn_factors=False)
    torch.testing.assert_close(curved.text_rows(TEXTS.float()), TEXTS.float() / 4)
    assert [name for name, each in curved.named_parameters() if each.requires_grad] == ["log_curvature"]
    assert curved.curvature.item() == pytest.approx(2.0)
    curved.log_curvature.data.fill_(9.0)
    curved.clamp()
    assert curved.curvature.item() == pytest.approx(10.0)
    curved.log_curvature.data.fill_(-math.inf)
    curved.clamp()
    assert curved.curvature.item() == pytest.approx(0.1)
