"""Prompt learners from the draw to the used adapter, on the folder of coloured noise of ``test_adapt``."""

import pytest
import torch
from omegaconf import OmegaConf
from test_adapt import NAMES, Paints, results, run_with, saved

from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.inference.adapted import load_adapted
from clipx.models.loading import load
from clipx.recipes import zeroshot
from clipx.run import Run

__all__ = ["run_with", "saved"]

SHORT = {
    "coop": ["adapter.n_ctx=2", "adapter.epochs=2", "adapter.batch_size=4"],
    "cocoop": ["adapter.epochs=2", "adapter.words=a b", "adapter.batch_size=4"],
    "eco": ["adapter.n_ctx=2", "adapter.prompts=2", "adapter.epochs=2", "adapter.batch_size=4"],
}


@pytest.mark.parametrize("method", SHORT)
def test_new_classes_are_answered_by_the_learned_prompts(run_with, method, capsys):
    metrics, run = run_with("task=base-to-new", "seed=1", *SHORT[method], method=method)
    assert 0 <= metrics["new_top1"] <= 1
    assert metrics["harmonic_mean"] >= 0
    said = capsys.readouterr().err
    assert "knows nothing of new classes" not in said
    assert "trained for 2 epochs of the" in said
    found = results(run)["seeds"]["1"]
    assert found["fit_seconds"] > found["seconds_per_image"] > 0
    if method == "cocoop":
        # Two vectors, and a network from 32 to 2 to 32.
        assert found["found"]["trained_parameters_"] == 2 * 32 + (32 * 2 + 2) + (2 * 32 + 32)


def test_what_is_kept_answers_for_any_names(run_with, saved, tmp_path):
    metrics, run = run_with("views=2", *SHORT["coop"], "seed=[3,4]", method="coop")
    found = results(run)["seeds"]["3"]
    assert len(found["found"]["nearest_words_"].split()) == 2
    assert found["train_images"] == 16
    adapted = load_adapted(run.directory / "adapter", load(saved).eval())
    rows = torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    picked = adapted.over(["cow", "ant"])
    assert torch.equal(picked.logits(rows), adapted.logits(rows)[:, [2, 0]])
    other = adapted.over(["cow", "elk"])
    torch.testing.assert_close(other.logits(rows)[:, 0], adapted.logits(rows)[:, 2])
    settings = resolve(compose("zeroshot", ["adapter=latest", "loader.workers=0"]))
    OmegaConf.set_struct(settings, False)
    settings.data = {"_target_": f"{Paints.__module__}.Paints"}
    with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as own:
        top1 = zeroshot.main(settings, own)["top1"]
    assert top1 == pytest.approx(found["top1"])
    assert adapted.names == NAMES
    assert metrics["difference"] == pytest.approx(metrics["top1"] - metrics["zero_shot_top1"])


def test_contexts_of_each_class_its_own_cannot_go_to_new_classes(run_with):
    with pytest.raises(ClipxError, match="class-specific contexts know nothing of other classes"):
        run_with("task=base-to-new", "seed=1", *SHORT["coop"], "adapter.class_specific=true", method="coop")


def test_names_that_are_too_long_for_the_model_are_said(run_with):
    with pytest.raises(ClipxError, match=r"takes .* tokens with 16 context vectors, this model reads 16"):
        run_with("seed=1", "adapter.epochs=1", method="coop")
