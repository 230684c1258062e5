import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clipx.adapters.tip_adapter import TipAdapter
from clipx.config import compose, resolve
from clipx.errors import BadSample, ClipxError
from clipx.features.encode import encode
from clipx.inference.adapted import describe, load_adapted
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.recipes import adapt, zeroshot
from clipx.run import Run

SMALL = ["batch_size=64", "loader.workers=0", "shots=4", "seed=[1,2]"]
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 230), (230, 220, 40)]
NAMES = ["ant", "bee", "cow", "dog"]


class Paints:
    """Noisy pictures in the colour of their class: easy to learn, meaningless to a random text tower."""

    templates = None

    def __init__(
        self, split, name="paints", size=80, classes=4, names=None, bad=(), few=None, labels=None, groups=()
    ):
        self.split, self.name, self.size, self.bad, self.few = split, name, size, set(bad), few
        self.classes = list(names or NAMES[:classes])
        self.number = classes
        self.fixed = labels
        self.group_names = list(groups)

    def __len__(self):
        return self.size

    @property
    def labels(self):
        if self.fixed is not None:
            return np.full(self.size, self.fixed)
        found = np.arange(self.size) % self.number
        if self.few is not None and self.split == "train":
            lost = np.flatnonzero(found == self.number - 1)[self.few :]
            found[lost] = 0
        return found

    @property
    def groups(self):
        return self.labels % 2

    def examples(self, indices):
        return [self.example(int(index)) for index in indices]

    def example(self, index):
        if self.split == "train" and index in self.bad:
            return BadSample(f"truncated image: {index}.jpg")
        label = int(self.labels[index])
        seed = [index, {"train": 0, "validation": 1, "test": 2}[self.split]]
        noise = np.random.default_rng(seed).normal(0, 60, (32, 32, 3))
        pixels = np.clip(np.array(COLOURS[label % 4]) + noise, 0, 255).astype(np.uint8)
        return {"image": pixels, "captions": [], "label": label, "id": f"{self.split} {index}"}

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

    def start(*overrides, method="tip-adapter", transfer=None, **source):
        settings = resolve(compose("adapt", [f"model={saved}", *SMALL, *overrides], method=method))
        OmegaConf.set_struct(settings, False)
        settings.data = {"_target_": f"{__name__}.Paints", **source}
        for name, node in (transfer or {}).items():
            settings.transfer[name] = {"_target_": f"{__name__}.Paints", **node}
        with Run.create(tmp_path / "outputs", "adapt", method, settings) as run:
            return adapt.main(settings, run), run

    return start


def results(run):
    return json.loads((run.directory / "results.json").read_text())


def shots(run, seed=1):
    return json.loads((run.directory / "shots" / f"seed-{seed}.json").read_text())


def test_accuracy_stands_beside_zero_shot(run_with, capsys):
    metrics, run = run_with()
    assert metrics["top1"] > 0.9 > metrics["zero_shot_top1"]
    assert metrics["difference"] == pytest.approx(metrics["top1"] - metrics["zero_shot_top1"])
    found = results(run)
    tops = [found["seeds"][seed]["top1"] for seed in ("1", "2")]
    assert metrics["top1"] == pytest.approx(np.mean(tops))
    # Student's interval of two values: t(0.975, 1) = 12.706 times the standard error.
    assert metrics["top1_ci"] == pytest.approx(12.706 * abs(tops[0] - tops[1]) / 2, abs=1e-3)
    assert found["val"] == "coop"
    assert found["seeds"]["1"]["train_images"] == found["seeds"]["1"]["validation_images"] == 16
    assert {"alpha_", "beta_"} <= found["seeds"]["1"]["found"].keys()
    assert found["intervals"]["top1"][0] <= metrics["top1"]
    header, *rows = (run.directory / "per_class.csv").read_text().splitlines()
    assert header.startswith("class,shots,support,recall,zero_shot_recall,difference")
    assert [row.split(",")[:3] for row in rows] == [[name, "4.0", "20"] for name in NAMES]
    with Image.open(run.path("figures", "confusion.png")) as figure:
        assert figure.width > 300
    assert "| difference |" in (run.directory / "table.md").read_text()
    assert "adapter=adapt/tip-adapter/v0001" in run.next[0]


def test_the_worst_group_stands_beside_zero_shot(run_with):
    metrics, run = run_with("shots=1", groups=["even", "odd", "none"])
    with (run.directory / "per_class.csv").open() as file:
        classes = list(csv.DictReader(file))
    with (run.directory / "per_group.csv").open() as file:
        groups = list(csv.DictReader(file))
    assert [(row["group"], row["support"]) for row in groups] == [
        ("even", "40"),
        ("odd", "40"),
        ("none", "0"),
    ]
    for ours, theirs in (("accuracy", "recall"), ("zero_shot_accuracy", "zero_shot_recall")):
        for number in (0, 1):  # as many images of each class: the mean of its classes is that of the group
            recalls = [float(row[theirs]) for row in classes[number::2]]
            assert float(groups[number][ours]) == pytest.approx(np.mean(recalls))
    before = [float(row["zero_shot_accuracy"]) for row in groups[:2]]
    assert metrics["zero_shot_worst_group"] == pytest.approx(min(before))
    assert metrics["zero_shot_group_gap"] == pytest.approx(max(before) - min(before))
    assert 0 < metrics["worst_group"] <= metrics["top1"]
    plain, run = run_with("seed=1")
    assert "worst_group" not in plain
    assert not (run.directory / "per_group.csv").exists()


def test_what_is_drawn_is_written_down(run_with):
    _, run = run_with()
    first = shots(run)
    assert {name.split()[0] for name in first["train"]} == {"train"}
    assert {name.split()[0] for name in first["validation"]} == {"validation"}
    assert Counter(int(name.split()[1]) % 4 for name in first["train"]) == dict.fromkeys(range(4), 4)
    assert first["train"] != shots(run, 2)["train"]
    again = run_with("seed=2", method="zero-shot")[1]
    assert shots(again, 2)["train"] == shots(run, 2)["train"]
    eight = set(shots(run_with("seed=1", "shots=8", "nested=true")[1])["train"])
    assert set(shots(run_with("seed=1", "nested=true")[1])["train"]) < eight


def test_zero_shot_makes_no_difference(run_with):
    metrics, _ = run_with(method="zero-shot")
    assert metrics["top1"] == metrics["zero_shot_top1"]
    assert metrics["difference"] == metrics["difference_ci"] == 0


def test_a_second_method_does_not_encode(run_with, monkeypatch):
    run_with("views=2")
    monkeypatch.setattr(CLIP, "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    run_with("views=2", method="zero-shot")
    run_with("views=2", "seed=2", method="zero-shot")


def test_one_seed_has_the_interval_of_its_test_images(run_with):
    metrics, run = run_with("seed=1", "shots=1")
    low, high = results(run)["intervals"]["top1"]
    assert low < metrics["top1"] <= high
    assert metrics["difference_ci"] > 0


@pytest.mark.parametrize(("regime", "images"), [("coop", 16), ("same", 32), ("full", 80), ("none", 0)])
def test_regimes_of_validation(run_with, capsys, regime, images):
    _, run = run_with("shots=8", f"val={regime}", "seed=1")
    found = results(run)
    assert found["val"] == regime
    assert found["seeds"]["1"]["validation_images"] == images
    assert ("more labels than the shots" in capsys.readouterr().err) == (regime == "full")
    if regime == "none":
        assert found["seeds"]["1"]["found"]["alpha_"] == 1.0


def test_values_found_elsewhere(run_with):
    _, first = run_with(name="imagenet-like")
    found = results(first)["seeds"]
    _, run = run_with("val=imagenet", "hyperparameters=adapt/tip-adapter/v0001", "seed=3")
    own = results(run)["seeds"]["3"]
    assert own["validation_images"] == 0
    assert own["found"]["beta_"] == pytest.approx(
        np.median([each["found"]["beta_"] for each in found.values()])
    )
    with pytest.raises(ClipxError, match="is a run of tip-adapter, not of zero-shot"):
        run_with("val=imagenet", "hyperparameters=adapt/tip-adapter/v0001", method="zero-shot")


def test_base_to_new(run_with, capsys):
    metrics, run = run_with("task=base-to-new")
    assert metrics["base_top1"] > 0.9
    assert metrics["new_difference"] == 0  # a cache knows nothing of new classes
    assert metrics["new_top1"] == metrics["new_zero_shot_top1"]
    base, new = metrics["base_top1"], metrics["new_top1"]
    assert metrics["harmonic_mean"] == pytest.approx(2 * base * new / (base + new))
    assert Counter(int(name.split()[1]) % 4 for name in shots(run)["train"]) == {0: 4, 1: 4}
    assert describe(run.directory / "adapter")["names"] == NAMES[:2]


def test_other_data_without_any_change(run_with, capsys):
    other = {
        "same": {"name": "same"},
        "subset": {"name": "subset", "classes": 2, "names": ["ANT", "Bee"]},
        "strange": {"name": "strange", "classes": 2, "names": ["oak", "elm"]},
    }
    metrics, _ = run_with(transfer=other)
    assert metrics["same_top1"] == pytest.approx(metrics["top1"], abs=0.1)
    assert metrics["subset_top1"] > 0.9
    assert metrics["strange_difference"] == 0
    assert "same_zero_shot_top1" in metrics


def test_a_class_with_few_images_gives_all_and_it_is_said(run_with, capsys):
    _, run = run_with("seed=1", few=2)
    assert len(shots(run)["train"]) == 14
    assert "fewer than 4 images, all of them used: dog (2)" in capsys.readouterr().err
    assert "dog,2.0,20" in (run.directory / "per_class.csv").read_text()


def test_a_class_without_images_is_said(run_with, capsys):
    run_with("seed=1", few=0)
    said = capsys.readouterr().err
    assert "no image to learn from: dog" in said


def test_what_cannot_be_opened_gives_way(run_with, capsys):
    _, plain = run_with("seed=1")
    lost = int(shots(plain)["train"][0].split()[1])
    _, run = run_with("seed=1", "views=2", bad=[lost])
    assert f"train {lost}" not in shots(run)["train"]
    assert shots(run)["train"][:3] == shots(plain)["train"][1:4]
    assert len(set(shots(run)["train"])) == 16
    assert "train images that cannot be used, others drawn instead: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "source", "message"),
    [
        (["shots=0"], {}, "shots=0"),
        (["views=0"], {}, "views=0"),
        (["seed=[]"], {}, r"seed=\[\] is no seed"),
        (["val=test"], {}, "val=test is no validation regime"),
        (["val=imagenet"], {}, "takes its values from another run"),
        (["hyperparameters=latest"], {}, "takes its values from another run"),
        (["task=few-shots"], {}, "no task 'few-shots'"),
        (["split=validation"], {}, "chooses on the validation split"),
        (["split=train"], {}, "split=train is not for measuring"),
        (["view_scale=1"], {}, "view_scale"),
        (["task=base-to-new"], {"classes": 3}, "3 are too few"),
        (["labels=[ant,bee]"], {}, "label 3, but"),
        ([], {"classes": 1}, "1 classes: nothing to tell apart"),
        ([], {"labels": -1}, "no labels to learn from"),
        (["adapter.alpha=-1"], {}, "alpha is -1"),
    ],
)
def test_what_cannot_be_done_is_said(run_with, overrides, source, message):
    with pytest.raises(ClipxError, match=message):
        run_with(*overrides, **source)


def test_choosing_on_test_has_to_be_published_and_is_flagged(run_with, capsys):
    with pytest.raises(ClipxError, match="no choice on test is published for zero-shot"):
        run_with("leaky_parity=true", method="zero-shot")
    _, run = run_with("leaky_parity=true", "seed=1")
    assert results(run)["leaky_parity"] is True
    assert results(run)["val"] == "leaky"
    assert "do not report this" in capsys.readouterr().err


def test_the_adapter_is_kept_and_used(run_with, saved, tmp_path, capsys, monkeypatch):
    _, run = run_with("seed=[2,1]")
    folder = run.directory / "adapter"
    assert describe(folder)["files"] == ["seed-2.safetensors", "seed-1.safetensors"]
    source = Paints("test")
    Image.fromarray(source.example(2)["image"]).save(tmp_path / "cow.png")

    def used(*overrides):
        settings = resolve(compose("zeroshot", overrides))
        OmegaConf.set_struct(settings, False)
        settings.data = {"_target_": f"{__name__}.Paints"}
        with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as own:
            return zeroshot.main(settings, own)

    for adapter in ("adapt/tip-adapter/v0001", "latest", str(folder / "seed-1.safetensors")):
        shares = used(f"adapter={adapter}", f"image={tmp_path}/cow.png")
        assert next(iter(shares)) == "cow"
        assert sum(shares.values()) == pytest.approx(1)
    assert list(used("adapter=latest", f"image={tmp_path}/cow.png", "labels=[dog, cow]")) == ["cow", "dog"]
    first = results(run)["seeds"]["2"]["top1"]
    assert used("adapter=latest", "loader.workers=0")["top1"] == pytest.approx(first)
    for overrides, message in (
        (["adapter=latest", "task=retrieval"], "does not retrieve"),
        (["adapter=gda/v0001", f"image={tmp_path}/cow.png"], "no run 'gda/v0001'"),
    ):
        with pytest.raises(ClipxError, match=message):
            used(*overrides)
    strange = ["adapter=latest", f"image={tmp_path}/cow.png", "labels=[cow, elk]"]
    assert set(used(*strange)) == {"cow", "elk"}
    assert "was not fitted for the class 'elk': names alone decide" in capsys.readouterr().err
    monkeypatch.delattr(TipAdapter, "for_classes")
    with pytest.raises(ClipxError, match="was not fitted for the class 'elk'"):
        used(*strange)
    torch.manual_seed(7)
    with pytest.raises(ClipxError, match="the features of another model"):
        load_adapted(folder, load("micro"))
    (folder / "adapter.json").write_text("{}")
    with pytest.raises(ClipxError, match="cannot be read"):
        describe(folder)


def test_a_saved_base_answers_for_new_classes(run_with, saved):
    metrics, run = run_with("task=base-to-new", "seed=1", "val=none", method="gda")
    adapted = load_adapted(run.directory / "adapter", load(saved).eval())
    assert adapted.names == NAMES[:2]
    test = encode(load(saved).eval(), Paints("test"), split="test", text=False, workers=0)
    kept = test.labels >= 2
    found = adapted.over(NAMES[2:]).outcomes(test.image[kept], test.labels[kept] - 2)
    assert float((found.ranks < 1).mean()) == pytest.approx(metrics["new_top1"])


def test_own_folders_of_any_size(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    for label, (name, count) in enumerate((("red_ant", 30), ("bee", 12), ("cow", 5))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng([label, number]).normal(0, 60, (32, 32, 3))
            pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "bee" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "names.yaml").write_text("bee: a busy bee\n")
    overrides = [
        f"model={saved}",
        *SMALL,
        "data=folder",
        f"data.root={tmp_path}/photos",
        "shots=8",
        "max_bad=0.5",
    ]
    settings = resolve(compose("adapt", [*overrides, f"data.class_names={tmp_path}/names.yaml"]))
    with Run.create(tmp_path / "outputs", "adapt", "tip-adapter", settings) as run:
        metrics = adapt.main(settings, run)
    assert metrics["top1"] > 0.5
    assert describe(run.directory / "adapter")["names"] == ["a busy bee", "cow", "red ant"]
    assert "fewer than 8 images, all of them used: cow" in capsys.readouterr().err


def test_a_process_that_does_not_write_does_nothing():
    settings = resolve(compose("adapt", ["model=micro"]))
    assert adapt.main(settings, Run(None, writes=False)) == {}
