import copy

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.simsiam import BYOL, SimSiam, predicted_views, spread
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

IMAGE = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
TEXT = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64)
ACROSS = [["image", "text"], *(["image_view_" + k, "text_view_" + j] for k in "12" for j in "12")]
SMALL = {"hidden": 16, "width": 8, "predictor": 4}


@pytest.fixture
def clip(micro):
    return copy.deepcopy(micro)


def pairs_of(clip, rows=6):
    generator = torch.Generator().manual_seed(0)
    pixels = {
        field: torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for field in ("image", "image_view_1", "image_view_2")
    }
    words = ("red", "blue", "green", "a circle", "a square", "two")
    tokens = {
        field: clip.tokenize([f"{start} {word}" for word in words[:rows]])
        for field, start in (("text", "a"), ("text_view_1", "the"), ("text_view_2", "some"))
    }
    return pixels | tokens


def test_the_published_case():
    # D(I, T) of the official code, and the loss of perfect predictions.
    assert -predicted_views([(IMAGE, TEXT)], [(IMAGE, TEXT)]).item() == pytest.approx(0.979289, abs=5e-7)
    assert predicted_views([(IMAGE, TEXT)], [(TEXT, IMAGE)]).item() == pytest.approx(-1.0)


def test_siamlip_is_twice_it_and_two():
    assert 2 + 2 * predicted_views([(IMAGE, TEXT)], [(IMAGE, TEXT)]).item() == pytest.approx(
        0.041421, abs=5e-7
    )


def test_gradients_flow_into_predictions_alone():
    given = [rows.clone().requires_grad_() for rows in (IMAGE, TEXT)]
    wanted = [rows.clone().requires_grad_() for rows in (TEXT, IMAGE)]
    predicted_views([tuple(given)], [tuple(wanted)]).backward()
    assert all(rows.grad is None for rows in wanted)
    assert torch.autograd.gradcheck(
        lambda a, b: predicted_views([(a, b)], [(TEXT.flip(0), IMAGE.flip(0))]), tuple(given)
    )


def test_within_images_it_is_that_of_declip(clip):
    batch = pairs_of(clip)
    module = TrainingModule(clip, {"siam": SimSiam(clip, **SMALL)}).train()
    own = module.objectives["siam"]
    found = module(batch)
    assert module.needs == ["image_view_1", "image_view_2"]
    z = [
        own.projectors["image"](clip.encode_image(clip.normalize(batch[field]), normalize=False))
        for field in module.needs
    ]
    p = [own.predictors["image"](each) for each in z]
    cosines = [
        functional.cosine_similarity(p[0], z[1]).mean(),
        functional.cosine_similarity(p[1], z[0]).mean(),
    ]
    torch.testing.assert_close(found["siam"], -(cosines[0] + cosines[1]) / 2, rtol=1e-4, atol=1e-5)
    found["loss"].backward()
    assert own.projectors["image"][0].weight.grad.abs().sum() > 0
    assert clip.model.visual.proj.grad.abs().sum() > 0


def test_heads_are_those_of_the_paper(clip):
    own = SimSiam(clip)
    widths = [layer.out_features for layer in own.projectors["image"] if isinstance(layer, torch.nn.Linear)]
    assert widths == [1024, 1024, 1024]
    kinds = [type(layer).__name__ for layer in own.projectors["image"]]
    assert kinds == ["Linear", "BatchNormAcross", "ReLU"] * 2 + ["Linear", "BatchNormAcross"]
    assert [type(layer).__name__ for layer in own.predictors["image"]] == [
        "Linear",
        "BatchNormAcross",
        "ReLU",
        "Linear",
    ]
    assert "text" not in own.projectors


def test_unit_rows_and_what_was_before_them_come_from_one_pass(clip):
    passes = []
    clip.model.visual.register_forward_hook(lambda *_: passes.append(1))

    class Rows(torch.nn.Module):
        needs = ("image_view_1",)
        forward = staticmethod(lambda encoded: {"rows": encoded.image("image_view_1").sum()})

    module = TrainingModule(clip, {"rows": Rows(), "siam": SimSiam(clip, **SMALL)})
    batch = pairs_of(clip)
    found = module(batch)
    assert len(passes) == 2  # of two views
    image = clip.encode_image(clip.normalize(batch["image_view_1"]))
    torch.testing.assert_close(found["rows"], image.sum())
    features = Encoded(clip, batch).features("image_view_1")
    torch.testing.assert_close(functional.normalize(features, dim=-1), image)
    assert (features.norm(dim=-1) - 1).abs().min() > 1e-3


def test_the_slow_copy_gives_the_targets_and_follows(clip):
    batch = pairs_of(clip)
    own = BYOL(clip, ACROSS, momentum=0.9, layers=2, last_affine=False, **SMALL)
    module = TrainingModule(clip, {"byol": own}).train()
    first = module(batch)["siam"]
    # At the start the copies are what they copy.
    plain = SimSiam(clip, ACROSS, layers=2, last_affine=False, **SMALL)
    plain.load_state_dict({k: v for k, v in own.state_dict().items() if not k.startswith("slow")})
    torch.testing.assert_close(first, TrainingModule(clip, {"siam": plain}).train()(batch)["siam"])
    before = clip.model.visual.proj.detach().clone()
    with torch.no_grad():
        clip.model.visual.proj.add_(1.0)
    shifted = module(batch)["siam"]
    module.after_step(0.5)
    torch.testing.assert_close(own.slow_clip.module.model.visual.proj, before + 0.1)
    assert shifted != first
    assert module(batch)["siam"] != shifted
    assert all(not parameter.requires_grad for parameter in own.slow_clip.parameters())


def test_it_is_saved_and_resumed_with_its_copies(clip):
    own = BYOL(clip, ACROSS, layers=1, **SMALL)
    assert any(name.startswith("slow_clip.") for name in own.state_dict())


def test_spread_is_largest_where_rows_point_everywhere():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 16, generator=generator)
    assert spread(rows).item() == pytest.approx(1 / 4, abs=0.005)
    assert spread(torch.ones(4, 16)).item() == pytest.approx(0, abs=1e-6)


def test_bf16(clip):
    batch = pairs_of(clip)
    module = TrainingModule(clip, {"siam": SimSiam(clip, ACROSS, **SMALL)})
    exact = module(batch)["siam"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(batch)["siam"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": []}, "no pairs"),
        ({"pairs": [["image"]]}, "no pairs"),
        ({"pairs": [["image", "texts"]]}, "no such field 'texts'"),
        ({"layers": 0}, "layers is 0"),
        ({"width": 0}, "a head of widths"),
    ],
)
def test_mistakes_are_named(clip, options, message):
    with pytest.raises(ClipxError, match=message):
        SimSiam(clip, **options)


def test_a_momentum_outside_its_range_is_named(clip):
    with pytest.raises(ClipxError, match=r"momentum is 1\.5"):
        BYOL(clip, momentum=1.5)


def test_one_row_has_no_batch_statistics(clip):
    module = TrainingModule(clip, {"siam": SimSiam(clip, **SMALL)}).train()
    with pytest.raises(ClipxError, match="2 rows"):
        module(pairs_of(clip, rows=1))


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "simsiam")
