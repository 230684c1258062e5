"""The heads that pretraining keeps, and the command that weighs their score with that of the embeddings."""

import csv
import json
import shutil
import sys

import open_clip
import pytest
import torch
import typer
from PIL import Image

from clipx import cli, console
from clipx.config import compose, resolve
from clipx.models.clip import CLIP, WEIGHTS_FILE
from clipx.models.loading import load
from clipx.objectives.kept_heads import HEADS_FILE, load_heads, save_heads
from clipx.recipes.pretrain import assembled, main
from clipx.run import Run
from clipx.training.checkpoints import Checkpoints

DATA = ["data.size=32", "data.test_size=24", "data.validation_size=8", "data.image_size=32"]
DATA += ["data.shapes=[circle, star]", "data.colours=[red, blue]", "loader.workers=0"]
SMALL = ["model=micro", "training.steps=4", "training.batch_size=8", "training.warmup=0"]
SMALL += ["objectives.projected.hidden=16", "objectives.projected.width=8", "training.ema=0.5"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """An output root with a run that keeps its heads."""
    folder = tmp_path_factory.mktemp("outputs")
    settings = resolve(compose("pretrain", [*SMALL, *DATA], method="improved-baselines"))
    with Run.create(folder, "pretrain", "improved-baselines", settings) as run:
        main(settings, run)
    return folder


@pytest.fixture
def clipx(outputs, tmp_path, monkeypatch, capsys):
    """Run a command line in this process; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIPX_OUTPUTS", str(outputs))
    monkeypatch.setattr(console, "_quiet", False)

    def start(*words):
        arguments = ["zeroshot", "--method", "score-ensemble", *words]
        monkeypatch.setattr(sys, "argv", ["clipx", *arguments])
        app = typer.main.get_command(cli.app)
        code = cli.run(lambda: app.main(args=arguments, prog_name="clipx", standalone_mode=False))
        return code, *capsys.readouterr()

    return start


def run_of(out):
    return json.loads(out)["run"]


def test_heads_are_kept_as_they_were_trained(outputs):
    run = outputs / "pretrain" / "improved-baselines" / "v0001"
    (name, kept), *others = load_heads(run / "model" / HEADS_FILE).items()
    assert (name, others) == ("projected", [])
    settings = resolve(compose("pretrain", [*SMALL, *DATA], method="improved-baselines"))
    checkpoint = Checkpoints(run / "checkpoints").load(4)
    averaged = {
        key.removeprefix("module."): value
        for key, value in checkpoint.training["average"].items()
        if key.startswith("module.")
    }
    module = assembled(settings)
    module.load_state_dict(averaged)
    own = module.eval().objectives["projected"]
    clip = load(str(run / "model")).eval()
    batch = {
        "image_view_1": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8),
        "text_view_1": clip.tokenize(["a red star", "a circle", "blue"]),
    }
    encoded = module.encoded(batch)
    with torch.no_grad():
        features = clip.encode_image(clip.normalize(batch["image_view_1"]), normalize=False)
        texts = clip.encode_text(batch["text_view_1"], normalize=False)
        assert torch.equal(kept.image(features), own.image_head(encoded.features("image_view_1")))
        assert torch.equal(kept.text(texts), own.text_head(encoded.features("text_view_1")))
    assert kept.logit_scale == pytest.approx(own.log_scale.exp().item())
    last = checkpoint.tensors["objectives.projected.image_head.0.weight"]
    assert not torch.equal(kept.image[0].weight, last)  # the average is what is kept


def test_open_clip_loads_the_model_beside_them(outputs):
    folder = outputs / "pretrain" / "improved-baselines" / "v0001" / "model"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load(str(folder)).model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())
    assert (folder / WEIGHTS_FILE).is_file()


def test_the_command_measures_at_a_weight_and_over_all_of_them(clipx, monkeypatch):
    model = "model=pretrain/improved-baselines/latest"
    code, out, err = clipx(model, *DATA, "--json")
    assert code == 0, err
    metrics, run = json.loads(out), run_of(out)
    with open(f"{run}/weights.csv") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["weight"] for row in rows] == [place / 10 for place in range(11)]
    assert list(rows[0]) == ["weight", "top1", "image_to_text_recall@1", "text_to_image_recall@1"]
    assert {name: metrics[name] for name in rows[5] if name != "weight"} == {
        name: value for name, value in rows[5].items() if name != "weight"
    }
    with open(f"{run}/results.json") as file:
        found = json.load(file)
    assert found["weight"] == 0.5
    assert found["weights"] == rows
    with open(f"{run}/table.md") as file:
        assert f"| 0.3 | {rows[3]['top1']:.3f} |" in file.read()
    with Image.open(f"{run}/figures/weights.png") as figure:
        assert figure.width > 400

    # Another weight is another look at the same rows.
    monkeypatch.setattr(CLIP, "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    code, out, err = clipx(model, *DATA, "ensemble.weight=0", "ensemble.weights=[0.1]", "--json")
    assert code == 0, err
    assert {name: json.loads(out)[name] for name in ("top1", "image_to_text_recall@1")} == {
        name: rows[0][name] for name in ("top1", "image_to_text_recall@1")
    }
    code, out, err = clipx(model, *DATA, "task=retrieval", "--json")
    assert code == 0, err
    with open(f"{run_of(out)}/weights.csv") as file:
        assert file.readline().strip() == "weight,image_to_text_recall@1,text_to_image_recall@1"


def test_at_weight_one_it_is_zero_shot(clipx, outputs, monkeypatch):
    from clipx.recipes import zeroshot

    code, out, err = clipx(
        "model=pretrain/improved-baselines/latest", *DATA, "ensemble.weight=1.0", "seed=4", "--json"
    )
    assert code == 0, err
    model = f"model={outputs / 'pretrain' / 'improved-baselines' / 'v0001'}"
    settings = resolve(compose("zeroshot", [model, *DATA, "seed=4"]))
    with Run.create(outputs, "zeroshot", "zero-shot", settings) as run:
        plain = zeroshot.main(settings, run)
    assert {name: json.loads(out)[name] for name in plain} == pytest.approx(plain, abs=1e-6)


def test_labels_are_ranked_by_both_scores(clipx, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    shares = {}
    for weight in ("0.0", "0.5"):
        code, out, err = clipx(
            "model=pretrain/improved-baselines/latest",
            f"ensemble.weight={weight}",
            "image=photo.jpg",
            "labels=[cat, dog]",
            "--json",
        )
        assert code == 0, err
        shares[weight] = [json.loads(out)[name] for name in ("cat", "dog")]
        assert sum(shares[weight]) == pytest.approx(1)
    assert shares["0.0"] != shares["0.5"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["model=tiny"], "model=tiny has no heads beside its weights", "--method improved-baselines"),
        (["ensemble.weight=1.5"], "the weight 1.5 does not lie in [0, 1]", "ensemble.weight=0.5"),
        (["ensemble.weights=[0.5,-1.0]"], "the weight -1.0 does not lie", "ensemble.weight=0.5"),
        (["ensemble.weights=[]"], "ensemble.weights=[] is no list", "ensemble.weights=[0.0,0.5,1.0]"),
        (["ensemble=null"], "ensemble=None has no weight", "ensemble.weight=0.5"),
        (["ensemble.heads=project"], "ensemble.heads=project names none", "did you mean 'projected'"),
        (
            ["adapter=adapt/gda/latest"],
            "score-ensemble weighs the scores of a model",
            "leave one of them out",
        ),
    ],
)
def test_what_cannot_be_weighed_is_said(clipx, words, message, hint):
    model = [] if words == ["model=tiny"] else ["model=pretrain/improved-baselines/latest"]
    code, out, err = clipx(*model, *DATA, *words)
    assert (code, out) == (2, "")
    assert f"error: {message}" in err
    assert "hint: " in err
    assert hint in err


def test_a_run_that_kept_nothing_and_one_that_kept_twice(clipx, outputs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(outputs / "pretrain" / "improved-baselines" / "v0001" / "model", model)
    (kept,) = load_heads(model / HEADS_FILE).values()
    save_heads(model, {"one": kept, "two": kept})
    code, _, err = clipx("model=./model", *DATA)
    assert code == 2
    assert "ensemble.heads=None names none" in err
    assert "valid: one, two" in err
    assert clipx("model=./model", *DATA, "ensemble.heads=two")[0] == 0
    (model / HEADS_FILE).unlink()
    code, _, err = clipx("model=./model", *DATA)
    assert code == 2
    assert "error: model=model has no heads" in err
