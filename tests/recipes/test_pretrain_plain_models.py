"""Methods that train with more than a CLIP save a plain one."""

import pytest
from safetensors.torch import load_file

from clipx.config import compose, resolve
from clipx.models.loading import load
from clipx.recipes.pretrain import main
from clipx.run import Run

SMALL = ["model=micro", "training.steps=3", "training.batch_size=8", "training.warmup=0", "loader.workers=0"]
SMALL += ["training.checkpoint_every=2", "data.size=32", "data.test_size=24", "data.validation_size=16"]


@pytest.mark.parametrize(
    ("method", "overrides", "terms"),
    [
        ("lightclip", ["model.text_layers=null"], {"soft_infonce", "token_match", "mlm"}),
        ("attentive-mask", ["objectives.attentive_mask.hidden=16"], {"infonce", "simclr", "byol"}),
        ("random-mask", ["objectives.attentive_mask.byol=0"], {"infonce", "simclr"}),
        ("attentive-mask-eff", ["objectives.attentive_mask.hidden=16"], {"infonce", "simclr", "byol"}),
    ],
)
def test_what_is_saved_has_the_parameters_of_the_model_alone(tmp_path, method, overrides, terms):
    settings = resolve(compose("pretrain", [*SMALL, *overrides], method=method))
    with Run.create(tmp_path / "outputs", "pretrain", method, settings) as run:
        main(settings, run)
    (record,) = [each for each in run.metrics() if "loss" in each][-1:]
    assert terms <= record.keys()
    saved = load_file(run.directory / "model" / "open_clip_model.safetensors")
    plain = load("micro").model.state_dict()
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in plain.items()
    }
