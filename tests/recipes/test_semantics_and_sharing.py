"""alignclip end to end: what captions mean reaches the objective, and the trunk the folder that is saved."""

import json

import open_clip
import pytest
import torch

from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.recipes.pretrain import main
from clipx.run import Run
from clipx.training.checkpoints import Checkpoints

SMALL = ["model=micro", "training.batch_size=8", "training.warmup=0", "loader.workers=0"]
SMALL += ["data.size=32", "data.test_size=16", "data.validation_size=16", "data.image_size=32"]


@pytest.fixture
def run_with(tmp_path):
    def start(*overrides, method="alignclip"):
        settings = resolve(compose("pretrain", [*SMALL, *overrides], method=method))
        run = Run.create(tmp_path / "outputs", "pretrain", method, settings)
        with run:
            return main(settings, run), run

    return start


def test_a_shared_model_trains_is_resumed_and_loads_in_open_clip(run_with):
    _, run = run_with("training.steps=3", "training.ema=0.5", "training.checkpoint_every=1")
    terms = {name for record in run.metrics() for name in record}
    assert {"infonce", "separated_images", "separated_texts"} <= terms
    folder = run.directory / "model"
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load(str(run.directory))
    assert ours.model.visual.transformer is ours.model.transformer
    images, tokens = torch.randn(2, 3, 32, 32), ours.tokenize(["a red circle", "a star"])
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval().encode_image(images), theirs.eval().encode_image(images, normalize=True)
        )
        torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens, normalize=True))
    start, end = (Checkpoints(run.directory / "checkpoints").load(step).tensors for step in (2, 3))
    block = "clip.model.transformer.resblocks.0.mlp.c_fc.weight"
    assert not torch.equal(start[block], end[block])
    assert torch.equal(end[block], end[block.replace("transformer", "visual.transformer")])


def test_without_a_meaning_of_captions_the_choice_is_named(run_with):
    with pytest.raises(ClipxError, match="needs the field 'semantics'") as caught:
        run_with("training.steps=1", "semantics=none")
    assert "semantics=words" in caught.value.hint


def test_towers_that_are_not_alike_are_named(run_with):
    with pytest.raises(ClipxError, match="both are transformers of open_clip") as caught:
        run_with("training.steps=1", "model=tiny", method="sharedclip")
    assert "tiny-vit" in caught.value.hint


def test_what_was_trained_with_a_shared_trunk_goes_on_with_it(run_with):
    _, run = run_with("training.steps=1", method="sharedclip")
    config = json.loads((run.directory / "model" / "open_clip_config.json").read_text())
    assert config["clipx"] == {"share": ["blocks", "norm", "projection"]}
    model = str(run.directory)
    _, more = run_with(f"model={model}", "model.share=null", "training.steps=1", method="sharedclip")
    again = load(str(more.directory)).model
    assert again.visual.proj is again.text_projection
