import copy
import math
from types import SimpleNamespace

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.geodesic_mixup import (
    CrossModalMix,
    UnimodalMix,
    cross_modal_mix,
    drawn_share,
    geodesic,
    inverse_epoch,
    unimodal_mix,
)
from clipx.objectives.infonce import info_nce
from clipx.probes.geometry import margins, uniformity
from clipx.training.module import TrainingModule


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1], [0, 0.1, 1]])


def drawn(n, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return [each.requires_grad_() for each in functional.normalize(rows, dim=-1).unbind()]


def encoded(image=IMAGE, text=TEXT, scale=1 / 0.07, progress=0.0):
    return SimpleNamespace(
        image=lambda: image, text=lambda: text, logit_scale=scale, progress=torch.tensor(progress)
    )


def test_the_published_case():
    image, text = IMAGE[:3], TEXT[:3]
    mixed = geodesic(image, text, 0.3)
    torch.testing.assert_close(mixed[0], torch.tensor([0.990469, 0.137738, 0]).double(), atol=5e-7, rtol=0)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(3).double())
    assert cross_modal_mix(image, text, 0.3, 1 / 0.07).item() == pytest.approx(0.019668, abs=5e-7)
    # Relative alignment is minus twice the margin of texts over the images that are not theirs.
    own = torch.arange(3).repeat(2, 1).T
    assert -2 * margins(text, image, own).mean().item() == pytest.approx(-0.639935, abs=5e-7)
    assert uniformity(torch.cat([image, text]))[0].item() == pytest.approx(-1.197298, abs=5e-7)


@pytest.mark.parametrize(("side", "expected"), [("image", 1.311906), ("text", 1.540810), ("both", 2.207944)])
def test_the_published_case_of_mixes_within_a_modality(side, expected):
    found = unimodal_mix(IMAGE, TEXT, 0.3, 1 / 0.07, side=side)
    assert found.item() == pytest.approx(expected, abs=5e-7)


def test_a_geodesic_ends_at_both_rows_and_moves_evenly_between_them():
    one, other = (rows.detach() for rows in drawn(6))
    torch.testing.assert_close(geodesic(one, other, 1.0), one)
    torch.testing.assert_close(geodesic(one, other, 0.0), other)
    whole = torch.arccos((one * other).sum(-1))
    for share in (0.1, 0.5, 0.8):
        mixed = geodesic(one, other, share)
        torch.testing.assert_close(torch.arccos((mixed * other).sum(-1)), share * whole)
        torch.testing.assert_close(torch.arccos((mixed * one).sum(-1)), (1 - share) * whole)


@pytest.mark.parametrize("near", [0.0, 1e-9, 1e-5])
def test_rows_of_one_direction_stay_finite(near):
    one = unit([[1, 0, 0]]).requires_grad_()
    other = unit([[1, near, 0]]).requires_grad_()
    mixed = geodesic(one, other, 0.3)
    mixed[0, :2].sum().backward()
    torch.testing.assert_close(mixed.detach(), unit([[1, 0.7 * near, 0]]))
    assert one.grad.isfinite().all()
    assert other.grad.isfinite().all()
    assert one.grad.abs().sum() > 0


def test_an_odd_batch_mixes_its_middle_with_itself():
    image, text = drawn(5)
    for side in ("image", "text", "both"):
        loss = unimodal_mix(image, text, 0.3, 10.0, side=side)
        loss.backward()
        assert loss.isfinite()
    assert image.grad.isfinite().all()


def test_whole_shares_leave_the_contrastive_loss():
    image, text = drawn(4)
    plain = info_nce(image, text, 10.0)
    torch.testing.assert_close(unimodal_mix(image, text, 1.0, 10.0, side="image"), plain)
    # An image among images, with its caption where it itself would be.
    own = torch.eye(4, dtype=torch.bool)
    logits = 10 * torch.where(own, image @ text.T, image @ image.T)
    other = 10 * torch.where(own, image @ text.T, text @ image.T)
    expected = functional.cross_entropy(logits, torch.arange(4)) + functional.cross_entropy(
        other, torch.arange(4)
    )
    torch.testing.assert_close(cross_modal_mix(image, text, 1.0, 10.0), expected)


def test_mixes_are_harder_than_the_captions_they_come_from():
    generator = torch.Generator().manual_seed(2)
    apart = torch.tensor([4.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    noise = torch.randn(32, 8, generator=generator, dtype=torch.float64)
    image = functional.normalize(noise + apart, dim=-1)
    text = functional.normalize(noise - apart, dim=-1)
    assert cross_modal_mix(image, text, 0.5, 10.0) > 2 * info_nce(image, text, 10.0)


@pytest.mark.parametrize("side", ["image", "text", "both", "m2"])
def test_gradients(side):
    image, text = drawn(4)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = cross_modal_mix if side == "m2" else lambda *given: unimodal_mix(*given, side=side)
    assert torch.autograd.gradcheck(lambda i, t, s: loss(i, t, 0.3, s), (image, text, scale))


def test_the_share_is_drawn_once_a_batch_from_a_beta_distribution():
    torch.manual_seed(0)
    found = torch.stack([drawn_share(0.5, torch.device("cpu")) for _ in range(2000)])
    assert found.mean().item() == pytest.approx(0.5, abs=0.03)
    assert found.var().item() == pytest.approx(1 / 8, abs=0.01)
    torch.manual_seed(1)
    share = drawn_share(0.5, torch.device("cpu"))
    torch.manual_seed(1)
    loss = CrossModalMix()(encoded())["m2_mix"]
    torch.testing.assert_close(loss, cross_modal_mix(IMAGE, TEXT, share, 1 / 0.07))


def test_the_weight_falls_from_epoch_to_epoch():
    steps = [step / 9 for step in range(9)]
    assert [inverse_epoch(torch.tensor(at), 9).item() for at in steps] == pytest.approx(
        [1 / (1 + epoch) for epoch in range(9)]
    )
    assert inverse_epoch(0.7, None) == 1
    for objective in (CrossModalMix, lambda **given: UnimodalMix("both", **given)):
        values = []
        for epochs, progress in ((None, 0.5), (4, 0.0), (4, 0.5)):
            torch.manual_seed(0)
            (value,) = objective(epochs=epochs)(encoded(progress=progress)).values()
            values.append(value.item())
        assert values == pytest.approx([values[0], values[0], values[0] / 3])


def test_a_temperature_below_the_models_warns_once(recwarn):
    objective = CrossModalMix(temperature=0.01)
    objective(encoded(scale=math.exp(2)))
    objective(encoded(scale=math.exp(2)))
    assert [str(each.message)[:33] for each in recwarn] == ["the temperature of mixes, 0.01, is"[:33]]
    CrossModalMix(temperature=None)(encoded())
    CrossModalMix(temperature=0.07)(encoded(scale=100.0))
    assert len(recwarn) == 1


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="unknown side 'images'") as caught:
        UnimodalMix("images")
    assert "image" in caught.value.hint
    with pytest.raises(ClipxError, match="unknown side"):
        unimodal_mix(IMAGE, TEXT, 0.3, 10.0, side="v")
    with pytest.raises(ClipxError, match="beta is 0"):
        CrossModalMix(beta=0)
    with pytest.raises(ClipxError, match="epochs is -1"):
        UnimodalMix("image", epochs=-1)
    with pytest.raises(ClipxError, match="temperature is 0"):
        CrossModalMix(temperature=0)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        CrossModalMix()(encoded(IMAGE[:1], TEXT[:1]))


@pytest.mark.parametrize("case", ["m2-mix", "v-mix", "l-mix", "vl-mix"])
def test_processes_together_do_what_one_does_alone(processes, case):
    worlds.check_alone(processes, case)


def test_towers_in_bf16(micro):
    torch.manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8),
        "text": torch.randint(1, 1000, (5, 16)),
    }
    module = TrainingModule(copy.deepcopy(micro), {"m2": CrossModalMix(), "vl": UnimodalMix("both")})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(batch)
    found["loss"].backward()
    assert {value.dtype for value in found.values()} == {torch.float32}
    for tower in (module.clip.model.visual.proj, module.clip.model.text_projection):
        assert tower.grad.isfinite().all()
        assert tower.grad.abs().sum() > 0
