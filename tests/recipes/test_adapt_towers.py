"""clipx adapt with methods that train the towers, from the draw to the used adapter, on a micro model."""

import copy
import json

import pytest
import torch
from PIL import Image

from clipx.config import compose, resolve
from clipx.data.shots import ShotImages
from clipx.inference.adapted import describe, load_adapted
from clipx.models.loading import load
from clipx.recipes import adapt, zeroshot
from clipx.run import Run

DATA = [
    *("data=scenes-shift", "data.size=80", "data.test_size=16", "data.image_size=32", "data.names=null"),
    *("data.shapes=[circle,star]", "data.colours=[red,cyan]", "loader.workers=0"),
]
SMALL = [
    *("batch_size=64", "shots=2", "seed=[1,2]", "val=none"),
    *("adapter.steps_per_shot=4", "adapter.shorten=1", "adapter.lr=0.01"),
]
METHODS = pytest.mark.parametrize("method", ["lora", "clip-svd"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory, micro):
    return str(copy.deepcopy(micro).save(tmp_path_factory.mktemp("model") / "micro"))


@pytest.fixture
def run_with(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))

    def start(method, *overrides):
        settings = resolve(compose("adapt", [f"model={saved}", *DATA, *SMALL, *overrides], method=method))
        with Run.create(tmp_path / "outputs", "adapt", method, settings) as run:
            return adapt.main(settings, run), run

    return start


@METHODS
def test_from_the_shots_to_the_used_adapter(run_with, method, saved, tmp_path, capsys, monkeypatch):
    seen = []
    plain = ShotImages.batches

    def batches(self, *args, **given):
        seen.append((self.transform.scale, self.transform.flip, len(self)))
        return plain(self, *args, **given)

    monkeypatch.setattr(ShotImages, "batches", batches)
    metrics, run = run_with(method)
    assert set(seen) == {((0.08, 1.0), 0.5, 8)}  # as published, whatever the other methods take
    assert metrics["difference"] == pytest.approx(metrics["top1"] - metrics["zero_shot_top1"])
    found = json.loads((run.directory / "results.json").read_text())
    assert found["seeds"]["1"]["found"]["steps_"] == 8
    assert "trained on 8 images of seed 2 in" in capsys.readouterr().err

    clip = load(saved).eval()
    folder = run.directory / "adapter"
    adapted = load_adapted(folder, clip)
    assert adapted.names == describe(folder)["names"]
    assert adapted.tower.fingerprint() != clip.fingerprint()
    settings = resolve(compose("zeroshot", ["adapter=latest", *DATA]))
    with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as own:
        assert zeroshot.main(settings, own)["top1"] == pytest.approx(found["seeds"]["1"]["top1"])
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    settings = resolve(compose("zeroshot", ["adapter=latest", f"image={tmp_path}/red.png"]))
    with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as own:
        assert sum(zeroshot.main(settings, own).values()) == pytest.approx(1)


@METHODS
def test_new_classes_are_asked_of_the_trained_towers(run_with, method):
    metrics, run = run_with(method, "task=base-to-new", "seed=1")
    assert {"base_top1", "new_top1", "harmonic_mean"} <= metrics.keys()
    again, _ = run_with(method, "task=base-to-new", "seed=1")
    assert again == metrics
    assert len(describe(run.directory / "adapter")["names"]) == 2


def test_a_resnet_is_said_to_be_trained_in_part(run_with, micro_resnet, tmp_path, capsys):
    torch.manual_seed(0)
    folder = copy.deepcopy(micro_resnet).save(tmp_path / "resnet")
    run_with("lora", f"model={folder}", "seed=1")
    assert capsys.readouterr().err.count("only the attention pool is trained") == 1
    run_with("lora", f"model={folder}", "seed=1", "adapter.targets=[q,k,v,conv]", "adapter.towers=[image]")
    assert "attention pool" not in capsys.readouterr().err
