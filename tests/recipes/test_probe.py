"""``clipx probe`` from the configuration to the run's folder."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.recipes import probe
from clipx.run import Run

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 230), (230, 220, 40)]
SMALL = ["batch_size=64", "loader.workers=0"]


class Paints:
    """Noisy pictures in the colour of their class, with or without captions."""

    name, templates = "paints", None

    def __init__(self, split, size=60, classes=4, captions=True, labels=True, validation=True):
        if split == "validation" and not validation:
            raise ClipxError("no validation split")
        self.split, self.size, self.number, self.captions = split, size, classes, captions
        self.classes = ["ant", "bee", "cow", "dog"][:classes] if labels else None
        self.labels = np.arange(size) % classes if labels else np.full(size, -1)

    def __len__(self):
        return self.size

    def examples(self, indices):
        return [self.example(int(index)) for index in indices]

    def example(self, index):
        seed = [index, {"train": 0, "validation": 1, "test": 2}[self.split]]
        noise = np.random.default_rng(seed).normal(0, 60, (32, 32, 3))
        pixels = np.clip(np.array(COLOURS[index % self.number]) + noise, 0, 255).astype(np.uint8)
        captions = [f"picture {index // 2}"] if self.captions else []
        return {
            "image": pixels,
            "captions": captions,
            "label": int(self.labels[index]),
            "id": f"{self.split} {index}",
        }

    def fingerprint(self):
        return repr(sorted((key, str(value)) for key, value in vars(self).items()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(load("micro").save(tmp_path_factory.mktemp("model") / "micro"))


@pytest.fixture
def run_with(saved, tmp_path, monkeypatch):
    """Run the recipe with overrides; returns its metrics and the run."""
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))

    def start(*overrides, method, shifts=None, outside=None, **source):
        settings = resolve(compose("probe", [f"model={saved}", *SMALL, *overrides], method=method))
        OmegaConf.set_struct(settings, False)
        paints = {"_target_": f"{__name__}.Paints"}
        settings.data = {**paints, **source}
        settings.shifts = {name: {**paints, **each} for name, each in (shifts or {}).items()}
        settings.outside = {name: {**paints, **each} for name, each in (outside or {}).items()}
        with Run.create(tmp_path / "outputs", "probe", method, settings) as run:
            return probe.main(settings, run), run

    return start


def results(run):
    return json.loads((run.directory / "results.json").read_text())


def test_the_linear_probe_writes_what_it_found(run_with):
    few = ["probe.heads.neighbours.ks=[1,5]", "probe.curve=[1,4]"]
    metrics, run = run_with(*few, method="linear-probe-full")
    assert metrics["top1"] > 0.9 > metrics["zero_shot_top1"]
    found = results(run)
    assert (found["bank"], found["train_images"], found["classes"]) == ("pre_projection", 60, 4)
    assert found["intervals"]["top1"][0] <= metrics["top1"]
    for name in ("sweep", "per_class", "learning_curve"):
        assert len((run.directory / f"{name}.csv").read_text().splitlines()) > 2
    assert "| top1 |" in (run.directory / "table.md").read_text()
    for name in ("probe", "confusion"):
        with Image.open(run.path("figures", f"{name}.png")) as figure:
            assert figure.width > 400


@pytest.mark.parametrize("method", ["linear-probe-full", "knn-probe", "sgd-probe"])
def test_every_probe_of_features_learns_colours(run_with, method):
    few = {
        "linear-probe-full": ["probe.heads.neighbours.ks=[5]", "probe.curve=[]"],
        "knn-probe": ["probe.heads.neighbours.ks=[5]"],
        "sgd-probe": ["probe.heads.sgd.steps=100"],
    }
    assert run_with(*few[method], method=method)[0]["top1"] > 0.9


def test_the_modality_gap_is_measured_and_a_second_run_does_not_encode(run_with, monkeypatch):
    first, run = run_with(method="modality-gap")
    assert {"centroid_distance", "separability", "alignment", "uniformity_text"} <= first.keys()
    assert (results(run)["samples"], results(run)["texts"]) == (60, 30)
    assert run.path("figures", "modality_gap.png").exists()
    monkeypatch.setattr(CLIP, "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    assert run_with(method="modality-gap")[0] == first


ROBUST = ["styles=[inverted,blur]", "probe.sizes=[1,4]"]


def test_the_robustness_suite_looks_at_styles_other_data_and_strangers(run_with):
    metrics, run = run_with(
        *ROBUST,
        method="robustness-suite",
        shifts={"half": {"classes": 2, "size": 30}},
        outside={"far": {"labels": False}},
    )
    assert {"top1", "inverted_top1", "blur_top1", "half_top1", "shift_ece", "far_auroc"} <= metrics.keys()
    table = [line.split(",") for line in (run.directory / "shifts.csv").read_text().splitlines()]
    assert [row[:3] for row in table[1:]] == [
        ["inverted", "60", "4"],
        ["blur", "60", "4"],
        ["half", "30", "2"],
    ]
    assert results(run)["known_classes"] == ["ant", "bee"]
    assert list(results(run)["skipped"]) == [
        "test",
        "train",
        "validation",
        "inverted",
        "blur",
        "half",
        "outside.far",
    ]
    assert results(run)["baselines"] == [f"probe of {count} images" for count in (4, 16, 60)]
    for name in ("robustness", "calibration", "ood"):
        with Image.open(run.path("figures", f"{name}.png")) as figure:
            assert figure.width > 400


def test_columns_are_found_by_name():
    names = ["Cat", "dog", "bird", "cat"]
    assert probe.class_columns(names, names, "v2") == [[0], [1], [2], [3]]
    assert probe.class_columns(names, ["bird", "CAT"], "v2") == [[2], [0, 3]]
    with pytest.raises(ClipxError, match="does not have: cow, hen"):
        probe.class_columns(names, ["dog", "cow", "hen"], "v2")
    with pytest.raises(ClipxError, match="none at all"):
        probe.class_columns(names, [], "v2")


def test_prompts_stand_in_for_captions(run_with):
    prompts = ["texts=prompts", 'templates=["a {}", "the {}"]']
    _, run = run_with(*prompts, method="modality-gap", captions=False)
    assert (results(run)["samples"], results(run)["texts"], results(run)["pairs"]) == (60, 8, 120)


def test_without_a_validation_split_a_tenth_of_train_is_held_out(run_with, capsys):
    few = ["probe.heads.neighbours.ks=[1,5]", "probe.curve=[]"]
    _, run = run_with(*few, method="linear-probe-full", validation=False)
    assert (results(run)["train_images"], results(run)["validation_images"]) == (56, 4)
    assert "1 in 10 of train is held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "method", "source", "message"),
    [
        ([], "modality-gap", {"captions": False}, "the test split has no captions"),
        (["texts=prompts"], "modality-gap", {"labels": False}, "0 classes"),
        (["texts=words"], "modality-gap", {}, "texts=words"),
        ([], "linear-probe-full", {"labels": False}, "0 classes: nothing to tell apart"),
        (["labels=[a1, b2]"], "linear-probe-full", {"labels": False}, "no image of test has a label"),
        ([], "linear-probe-full", {"classes": 1}, "1 classes: nothing to tell apart"),
        (["labels=[a1, b2]"], "linear-probe-full", {}, "label 3, names are for 2 classes"),
        ([], "knn-probe", {}, "k=200 neighbours among 60"),
        (["probe.heads.logistic.cs=[]"], "linear-probe-full", {}, "no grid of strengths"),
        (["split=validation"], "linear-probe-full", {}, "chooses on the validation split"),
        (["styles=[]"], "robustness-suite", {}, "no shift to be robust to"),
        (["styles=[sepia]"], "robustness-suite", {}, "no style 'sepia'"),
        (["styles=[blur]"], "robustness-suite", {"shifts": {"blur": {}}}, "two shifts of the name blur"),
        (["styles=[]"], "robustness-suite", {"shifts": {"v2": {"labels": False}}}, "none at all"),
        (["styles=[blur]"], "robustness-suite", {"labels": False}, "0 classes: nothing to tell apart"),
        (["styles=[blur]"], "robustness-suite", {"classes": 2}, "fewer than two would stay"),
        (["split=train"], "knn-probe", {}, "chooses on the train split"),
    ],
)
def test_what_cannot_be_done_is_said(run_with, overrides, method, source, message):
    with pytest.raises(ClipxError, match=message):
        run_with(*overrides, method=method, **source)


def test_a_process_that_does_not_write_does_nothing():
    assert probe.main(OmegaConf.create({}), Run(None, writes=False)) == {}
