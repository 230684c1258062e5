import fits
import pytest
import torch
from torch import nn

from clipx.objectives.infonce import InfoNCE, info_nce
from clipx.training.module import TrainingModule


class Dtype(nn.Module):
    """Notes what an objective gets."""

    needs = ("image", "text", "label")

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(32, 1)

    def forward(self, encoded):
        self.seen = [encoded.image().dtype, encoded.text().dtype, torch.is_autocast_enabled("cpu")]
        return {"a": self.head(encoded.image()).mean(), "b": encoded.text().mean() + 1}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {"image": images, "text": torch.randint(0, 1024, (4, 16), generator=generator)}


def test_the_loss_is_the_weighted_sum_and_the_terms_stay_as_they_are(batch):
    clip = fits.clip()
    module = TrainingModule(clip, {"infonce": InfoNCE(), "other": Dtype()}, {"other": 0.25})
    found = module(batch)
    image, text = clip.encode_image(clip.normalize(batch["image"])), clip.encode_text(batch["text"])
    torch.testing.assert_close(found["infonce"], info_nce(image, text, clip.logit_scale))
    torch.testing.assert_close(found["loss"], found["infonce"] + 0.25 * (found["a"] + found["b"]))
    assert module.needs == ["image", "label", "text"]


def test_what_an_objective_owns_trains_with_it(batch):
    module = TrainingModule(fits.clip(), {"other": Dtype()})
    module(batch)["loss"].backward()
    assert module.objectives["other"].head.weight.grad.abs().sum() > 0
    assert "objectives.other.head.weight" in module.state_dict()


def test_objectives_compute_in_float32_under_bf16(batch):
    other = Dtype()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = TrainingModule(fits.clip(), {"infonce": InfoNCE(), "other": other})(batch)
    assert other.seen == [torch.float32, torch.float32, False]
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_each_field_is_embedded_once_however_many_ask(batch):
    clip = fits.clip()
    calls = []
    clip.model.visual.register_forward_hook(lambda *_: calls.append("image"))
    TrainingModule(clip, {"one": InfoNCE(), "two": InfoNCE(label_smoothing=0.1)})(batch)
    assert calls == ["image"]
