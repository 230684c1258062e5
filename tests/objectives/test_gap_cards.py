"""The cards whose objectives are about where images and texts lie train, and by a scale that is fixed."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from clipx.config import compose, resolve
from clipx.recipes import finetune, pretrain
from clipx.recipes.parts import build_objectives
from clipx.run import Run

SMALL = ["training.steps=3", "training.batch_size=32", "training.warmup=0", "loader.workers=0"]
SCENES = ["data.size=64", "data.test_size=24", "data.validation_size=16", "data.image_size=32"]
SCENES += ["data.shapes=[circle, star]", "data.colours=[red, blue]"]
PRETRAIN = {"clip-margin-reg": None, "contrastive-gap": 100.0, "cloob": 30.0}
"""Card -> the logit scale that it fixes."""


def trained(folder, command, method, *overrides):
    settings = resolve(compose(command, [*SMALL, *SCENES, *overrides], method=method))
    run = Run.create(folder, command, method, settings)
    with run:
        metrics = {"pretrain": pretrain, "finetune": finetune}[command].main(settings, run)
    return metrics, run


def saved_scale(run):
    from safetensors.torch import load_file

    weights = load_file(run.directory / "model" / "open_clip_model.safetensors")
    return math.exp(weights["logit_scale"].item())


@pytest.mark.parametrize("method", PRETRAIN)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_card_pretrains(tmp_path, method, precision):
    metrics, run = trained(
        tmp_path, "pretrain", method, "model=micro", f"training.precision={precision}", "training.log_every=1"
    )
    assert 0 <= metrics["top1"] <= 1
    assert all(math.isfinite(record["loss"]) for record in run.metrics() if "loss" in record)
    if PRETRAIN[method] is None:
        assert saved_scale(run) != pytest.approx(1 / 0.07, rel=1e-5)  # it learns
    else:
        assert saved_scale(run) == pytest.approx(PRETRAIN[method], rel=1e-5)


def test_the_gap_card_finetunes_trained_weights_at_its_own_scale(tmp_path):
    _, run = trained(tmp_path, "finetune", "contrastive-gap", "data=scenes", "forgetting=null")
    assert saved_scale(run) == pytest.approx(100, rel=1e-5)


def test_a_scale_that_is_not_locked_learns_from_the_number(tmp_path):
    _, run = trained(
        tmp_path, "pretrain", "cloob", "model=micro", "lock.scale=false", "logit_scale=20", "optim.lr=1e-3"
    )
    assert saved_scale(run) == pytest.approx(20, rel=0.01)
    assert saved_scale(run) != pytest.approx(20, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "expected"), [([], -1.908848), (["objectives.cross_uniformity.weight=1"], -3.797975)]
)
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_gap_card_is_cua_and_cuaxu_by_one_weight(command, variant, expected):
    config = compose(command, variant, method="contrastive-gap")
    objectives, weights = build_objectives(config.objectives)
    unit = torch.nn.functional.normalize
    encoded = Encoded(
        unit(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]]), dim=-1),
        unit(torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]]), dim=-1),
        config.logit_scale,
    )
    total = sum(weights[name] * sum(each(encoded).values()) for name, each in objectives.items())
    assert OmegaConf.select(config, "lock.scale") is True
    assert total.item() == pytest.approx(expected, abs=1e-5)


class Encoded:
    """Pairs as objectives ask for them."""

    logit_bias = None

    def __init__(self, image, text, logit_scale):
        from clipx.models.geometry import COSINE

        self.rows, self.logit_scale, self.comparison = (image, text), logit_scale, COSINE

    def image(self):
        return self.rows[0]

    def text(self):
        return self.rows[1]
