import copy
import math

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import InfoNCE, info_nce
from clipx.objectives.multi_view import view_grid
from clipx.objectives.projected_views import ProjectedViews
from clipx.objectives.sinkhorn_swap import SinkhornSwap
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

SMALL = {"hidden": 16, "width": 8}


@pytest.fixture
def clip(micro):
    return copy.deepcopy(micro)


def batch_of(clip, rows=6):
    generator = torch.Generator().manual_seed(0)
    words = ("red", "blue", "green", "a circle", "a square", "two")
    images = {
        field: torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for field in ("image", "image_view_1", "image_view_2")
    }
    return images | {
        field: clip.tokenize([f"{start} {word}" for word in words[:rows]])
        for field, start in (("text", "a"), ("text_view_1", "the"), ("text_view_2", "some"))
    }


def test_the_published_case():
    # Weak views at 1 / 0.07; strong images I and T, strong texts T and T + 1 at 10; the sum of both modes.
    image = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
    text = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64)
    other = text + torch.eye(3, dtype=torch.float64)
    image, text, other = (functional.normalize(rows, dim=-1) for rows in (image, text, other))
    weak = info_nce(image, text, 1 / 0.07)
    strong = view_grid([image, text], [text, other], 10.0, label_smoothing=0.1)
    assert weak.item() == pytest.approx((0.011801 + 0.011234) / 2, abs=1e-6)
    assert strong.item() == pytest.approx((0.417973 + 0.408795) / 2, abs=1e-6)
    # The weights of the card, for the published sum instead of the mean.
    assert (2 / 3 * weak + 4 / 3 * strong).item() == pytest.approx(0.558857, abs=1e-6)


def test_views_are_compared_behind_heads_at_a_temperature_of_their_own(clip):
    batch = batch_of(clip)
    own = ProjectedViews(clip, init_scale=5.0, **SMALL)
    module = TrainingModule(clip, {"strong": own}).train()
    found = module(batch)
    images = [
        functional.normalize(own.image_head(Encoded(clip, batch).features(field)), dim=-1)
        for field in own.images
    ]
    texts = [
        functional.normalize(own.text_head(Encoded(clip, batch).features(field)), dim=-1)
        for field in own.texts
    ]
    torch.testing.assert_close(
        found["projected"], view_grid(images, texts, 5.0, label_smoothing=0.1), rtol=1e-4, atol=1e-5
    )
    assert found["projected_scale"].item() == pytest.approx(5)
    torch.testing.assert_close(found["loss"], found["projected"])
    found["loss"].backward()
    for parameter in (
        own.log_scale,
        own.image_head[0].weight,
        own.text_head[0].weight,
        clip.model.visual.proj,
    ):
        assert parameter.grad.abs().sum() > 0
    assert clip.model.logit_scale.grad is None


def test_heads_are_those_of_the_paper(clip):
    head = ProjectedViews(clip).image_head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNormAcross", "ReLU"] * 2 + ["Linear"]
    assert [head[0].out_features, head[3].out_features, head[6].out_features] == [4096, 4096, 256]


def test_the_temperature_stays_in_its_bounds(clip):
    own = ProjectedViews(clip, **SMALL)
    module = TrainingModule(clip, {"strong": own})
    for start, end in ((9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            own.log_scale.fill_(start)
        assert module(batch_of(clip))["projected_scale"].item() == pytest.approx(end, rel=1e-5)


def test_others_find_the_views_whatever_the_order(clip):
    batch = batch_of(clip)
    found = []
    for order in (("swap", "strong"), ("strong", "swap")):
        torch.manual_seed(0)
        objectives = {
            "strong": ProjectedViews(clip, label_smoothing=0.0, **SMALL),
            "swap": SinkhornSwap(),
        }
        module = TrainingModule(clip, {name: objectives[name] for name in order})
        assert "projected_views" not in module.needs
        found.append(module(batch))
    torch.testing.assert_close(found[0]["swap"], found[1]["swap"])
    assert TrainingModule(clip, {"swap": SinkhornSwap()}).needs == ["projected_views"]


def test_dropping_is_for_its_own_texts_alone(clip):
    batch = batch_of(clip)
    module = TrainingModule(
        clip, {"infonce": InfoNCE(), "strong": ProjectedViews(clip, text_dropout=0.5, **SMALL)}
    ).train()
    plain = clip.encode_text(batch["text"])
    strong = clip.encode_text(batch["text_view_1"])
    torch.manual_seed(0)
    encoded = module.encoded(batch)
    module.terms(encoded)
    assert torch.equal(encoded.text("text"), plain)
    assert (encoded.text("text_view_1") - strong).abs().max() > 1e-2
    assert torch.equal(clip.encode_text(batch["text_view_1"]), strong)  # nothing is left behind
    module.eval()
    encoded = module.encoded(batch)
    module.terms(encoded)
    torch.testing.assert_close(encoded.text("text_view_1"), strong)


def test_a_gradient_cache_is_for_towers_that_drop_nothing(clip):
    assert ProjectedViews(clip, **SMALL).pooled
    assert not ProjectedViews(clip, text_drop_path=0.1, **SMALL).pooled


def test_bf16(clip):
    module = TrainingModule(clip, {"strong": ProjectedViews(clip, **SMALL)})
    batch = batch_of(clip)
    exact = module(batch)["projected"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(batch)["projected"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": ["img"]}, "no such field 'img'"),
        ({"init_scale": 0.1}, "init_scale is 0.1"),
        ({"text_dropout": 1.0}, "text_dropout is 1.0"),
        ({"text_drop_path": -0.1}, "text_drop_path is -0.1"),
    ],
)
def test_mistakes_are_named(clip, options, message):
    with pytest.raises(ClipxError, match=message):
        ProjectedViews(clip, **options)


def test_a_tower_that_cannot_drop_anything_is_named(clip):
    clip.model.text_pool_type = "last"
    with pytest.raises(ClipxError, match="cannot drop anything"):
        ProjectedViews(clip, text_dropout=0.1)
    assert ProjectedViews(clip, **SMALL).pooled


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "projected")
