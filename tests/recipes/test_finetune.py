import csv
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clipx.adapters import saving
from clipx.adapters.linear_probe import LinearProbe
from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.inference.before_after import Head
from clipx.inference.fisher import fisher_of
from clipx.inference.weight_curve import state_of
from clipx.models.clip import images_to_features
from clipx.models.interpolation import fisher_average
from clipx.models.loading import load
from clipx.recipes import finetune, merging, zeroshot
from clipx.recipes.finetune import _classifier, main
from clipx.recipes.probed_head import probed_head
from clipx.run import Interrupted, Run

SMALL = [
    "training.steps=4",
    "training.batch_size=8",
    "training.warmup=0",
    "loader.workers=0",
    "optim.lr=1e-3",
]
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 230)]
TIMED = {"images_per_second", "data_wait", "training_seconds"}
stop_at: dict[str, int] = {}
"""Example of ``Paints`` at whose reading the process gets a SIGTERM, or nothing."""


class Paints:
    """Noisy pictures in the colour of their class, with captions or labels or both."""

    name, templates = "paints", None

    def __init__(self, split, classes=3, captions=True, shift=0, size=36):
        self.split, self.captions, self.shift, self.size = split, captions, shift, size
        self.classes = ["red", "green", "blue"][:classes] or None
        self.number = max(classes, 1)

    def __len__(self):
        return self.size

    @property
    def labels(self):
        return np.arange(self.size) % self.number if self.classes else np.full(self.size, -1)

    def examples(self, indices):
        return [self.example(int(index)) for index in indices]

    def example(self, index):
        if stop_at.get(self.split) == index:
            del stop_at[self.split]
            os.kill(os.getpid(), signal.SIGTERM)
        seed = [index, {"train": 0, "validation": 1, "test": 2}[self.split]]
        noise = np.random.default_rng(seed).normal(0, 30, (32, 32, 3))
        pixels = np.clip(np.array(COLOURS[index % 3]) + noise + self.shift, 0, 255).astype(np.uint8)
        captions = [f"picture {index % 3}"] if self.captions else []
        return {"image": pixels, "captions": captions, "label": int(self.labels[index]), "id": str(index)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(load("micro").save(tmp_path_factory.mktemp("model") / "micro"))


@pytest.fixture
def begin(saved, tmp_path):
    """Compose a configuration and open its run."""

    def start(*overrides, method="infonce", forgetting=None, shift=None, **source):
        settings = resolve(compose("finetune", [f"model={saved}", *SMALL, *overrides], method=method))
        OmegaConf.set_struct(settings, False)
        node = {"_target_": f"{__name__}.Paints"}
        settings.data = {**node, **source}
        settings.forgetting = None if forgetting is None else {**node, **forgetting}
        for name, each in (shift or {}).items():
            settings.shift[name] = {**node, **each}
        return settings, Run.create(tmp_path / "outputs", "finetune", method, settings)

    return start


@pytest.fixture
def run_with(begin):
    """Run the recipe with overrides; returns its metrics and the run."""

    def start(*overrides, **options):
        settings, run = begin(*overrides, **options)
        with run:
            return main(settings, run), run

    return start


def results(run):
    return json.loads((run.directory / "results.json").read_text())


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.directory / "model" / "open_clip_model.safetensors")


def changed(run, saved):
    """The parts of the model of a run that differ from where it started: visual, logit_scale, ..."""
    before = open_clip.create_model(f"local-dir:{saved}").state_dict()
    return {
        name.split(".")[0]
        for name, value in weights(run).items()
        if value.is_floating_point() and not torch.equal(value, before[name])
    }


def test_what_is_gained_and_lost_stands_beside_what_was(run_with, saved):
    metrics, run = run_with("training.steps=40", forgetting={"shift": -60}, shift={"dark": {"shift": -30}})
    assert metrics["difference"] == pytest.approx(metrics["top1"] - metrics["before_top1"])
    assert metrics["image_to_text_recall@1"] > 0.9 > metrics["before_image_to_text_recall@1"]
    for prefix in ("forgetting_", "shift_dark_"):
        gain = metrics[f"{prefix}top1"] - metrics[f"{prefix}before_top1"]
        assert metrics[f"{prefix}difference"] == pytest.approx(gain)
    found = results(run)
    assert found["intervals"]["before_top5"][0] <= 1
    assert "before_top5" not in metrics
    assert found["skipped"] == {"train": {}, "validation": {}, "test": {}, "forgetting": {}, "shift_dark": {}}
    assert {"visual", "transformer", "logit_scale"} <= changed(run, saved)
    rows = list(csv.DictReader((run.directory / "per_class.csv").open()))
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    recalls = [float(row["recall_before"]) for row in rows]
    assert np.mean(recalls) == pytest.approx(metrics["before_mean_per_class"])
    assert "| before_top1 |" in (run.directory / "table.md").read_text()
    assert f"model={run.shown}" in run.next[0]


def test_what_was_measured_before_is_the_model_as_it_was(run_with, saved, tmp_path):
    metrics, _ = run_with()
    settings = resolve(compose("zeroshot", [f"model={saved}", "loader.workers=0"]))
    OmegaConf.set_struct(settings, False)
    settings.data, settings.cache = {"_target_": f"{__name__}.Paints"}, str(tmp_path / "cache")
    Paints.fingerprint = lambda self: self.split
    with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as run:
        plain = zeroshot.main(settings, run)
    del Paints.fingerprint
    assert metrics["before_top1"] == plain["top1"]
    assert metrics["before_text_to_image_recall@1"] == plain["text_to_image_recall@1"]


def stopped_after(work):
    """The same work, after which the next reading of training data gets the signal."""

    def done(*arguments):
        found = work(*arguments)
        stop_at["train"] = 7
        return found

    return done


@pytest.mark.parametrize("method", ["infonce", "flyp", "flyp-ce", "lp-ft", "ft-clip", "wise-ft"])
def test_a_run_that_a_signal_stopped_is_resumed_to_the_same_end(run_with, begin, method, monkeypatch):
    overrides = ["training.steps=6", "training.ema=0.8", "training.evaluate_every=2"]
    _, whole = run_with(*overrides, method=method)
    settings, run = begin(*overrides, method=method)
    if method == "lp-ft":  # which reads the training data before it trains
        monkeypatch.setattr(finetune, "probed_head", stopped_after(probed_head))
    else:
        stop_at["train"] = 7
    with pytest.raises(Interrupted), run:
        main(settings, run)
    monkeypatch.undo()
    with Run.open(run.directory) as again:
        main(settings, again)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    kept = [{k: v for k, v in results(one).items() if k not in TIMED} for one in (whole, again)]
    assert kept[0] == kept[1]
    if method in ("ft-clip", "lp-ft"):
        one, other = (
            (each.directory / "adapter" / "head.safetensors").read_bytes() for each in (whole, again)
        )
        assert one == other


@pytest.mark.parametrize(
    ("locks", "trained"),
    [
        (["lock.image=true"], {"positional_embedding", "text_projection", "token_embedding", "ln_final"}),
        (["lock.text=true", "lock.scale=true"], {"visual"}),
        (["lock.text=true", "lock.image=true"], {"logit_scale"}),
    ],
)
def test_what_is_locked_stays_and_the_rest_learns(run_with, saved, locks, trained):
    _, run = run_with(*locks)
    found = changed(run, saved)
    assert trained <= found
    locked = {"lock.image=true": "visual", "lock.text=true": "transformer", "lock.scale=true": "logit_scale"}
    assert not found & {locked[each] for each in locks}


def test_labels_become_prompts_where_the_method_asks_for_them(run_with, begin):
    _, own = run_with(method="infonce")
    _, same = run_with("pairs=labels", method="infonce")
    assert any(not torch.equal(value, weights(own)[name]) for name, value in weights(same).items())
    bare = {"captions": False}
    _, without = run_with(method="infonce", **bare)  # no captions: prompts of labels, unasked
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(without).items())


@pytest.mark.parametrize(
    ("method", "loss"), [("flyp", "class_contrast"), ("flyp-ce", "prompt_cross_entropy")]
)
def test_both_towers_learn_classes_that_the_prompts_did_not_tell_apart(run_with, saved, method, loss):
    metrics, run = run_with("training.steps=60", method=method, captions=False)
    assert metrics["top1"] > 0.9 > metrics["before_top1"]
    assert loss in run.metrics()[0]
    assert "image_to_text_recall@1" not in metrics
    assert {"visual", "transformer", "token_embedding", "logit_scale"} <= changed(run, saved)
    assert not (run.directory / "adapter").exists()


EMBEDDING = "objectives.cross_entropy.pool=embedding"


def test_a_head_starts_at_the_prompts_and_is_measured_kept_and_used(run_with, saved, tmp_path):
    metrics, run = run_with(
        "optim.lr=1e-12", "training.ema=null", EMBEDDING, method="ft-clip", forgetting={"classes": 2}
    )
    assert metrics["top1"] == metrics["before_top1"] == metrics["zero_shot_top1"]
    assert "forgetting_zero_shot_top1" not in metrics  # other classes: the head has no answer
    metrics, run = run_with("training.steps=60", "optim.lr=3e-3", EMBEDDING, method="ft-clip")
    assert metrics["top1"] > 0.9 > metrics["before_top1"]
    assert metrics["difference"] == pytest.approx(metrics["top1"] - metrics["before_top1"])
    assert changed(run, saved) == {"visual"}
    start = open_clip.create_model(f"local-dir:{saved}").state_dict()["visual.conv1.weight"]
    assert torch.equal(weights(run)["visual.conv1.weight"], start)

    settings = resolve(compose("zeroshot", [f"adapter={run.directory}", "loader.workers=0"]))
    OmegaConf.set_struct(settings, False)
    settings.data, settings.cache = {"_target_": f"{__name__}.Paints"}, str(tmp_path / "cache")
    Paints.fingerprint = lambda self: self.split
    with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as other:
        assert zeroshot.main(settings, other)["top1"] == metrics["top1"]
    del Paints.fingerprint


def test_a_head_on_patches_is_measured_kept_and_used(run_with, saved, tmp_path):
    overrides = ["training.steps=60", "optim.lr=3e-3", "optim.backbone_decay=0.5"]
    metrics, run = run_with(*overrides, method="ft-clip")
    assert metrics["top1"] > 0.9 > metrics["before_top1"]
    start = open_clip.create_model(f"local-dir:{saved}").state_dict()
    for name in ("visual.conv1.weight", "visual.ln_post.weight", "visual.proj"):
        assert torch.equal(weights(run)[name], start[name])
    last = "visual.transformer.resblocks.0.mlp.c_proj.weight"
    assert not torch.equal(weights(run)[last], start[last])

    def zero_shot(*overrides):
        settings = resolve(compose("zeroshot", [f"adapter={run.directory}", "loader.workers=0", *overrides]))
        OmegaConf.set_struct(settings, False)
        settings.data, settings.cache = {"_target_": f"{__name__}.Paints"}, str(tmp_path / "cache")
        with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as other:
            return zeroshot.main(settings, other)

    Paints.fingerprint = lambda self: self.split
    try:
        assert zero_shot()["top1"] == metrics["top1"]
        Image.new("RGB", (32, 32), COLOURS[1]).save(tmp_path / "one.png")
        found = zero_shot(f"image={tmp_path / 'one.png'}")
    finally:
        del Paints.fingerprint
    assert max(found, key=found.get) == "green"
    assert sum(found.values()) == pytest.approx(1)


def test_heads_on_patches_are_merged_with_their_like_alone(run_with, begin):
    one, start = run_with("training.steps=10", "seed=1", method="ft-clip")
    other, end = run_with("training.steps=30", method="ft-clip")
    given = [f"start={start.directory}", f"run={end.directory}", "merge.alphas=[0.5]"]
    _, run = run_with(*given, method="wise-ft")
    assert [float(row["test"]) for row in (curve(run)[0], curve(run)[2])] == [one["top1"], other["top1"]]
    settings, run = begin(f"run={end.directory}", method="wise-ft")
    with pytest.raises(ClipxError, match="a head on patches and one on embeddings"):
        main(settings, run)


def test_lp_ft_starts_at_the_linear_probe_of_the_features_and_goes_on(run_with, saved):
    metrics, run = run_with("optim.lr=1e-12", method="lp-ft")
    clip, seen = load(saved), {}
    for split in ("train", "validation", "test"):
        examples = Paints(split).examples(range(36))
        images = torch.stack([clip.preprocess(Image.fromarray(each["image"])) for each in examples])
        labels = torch.tensor([each["label"] for each in examples])
        seen[split] = images_to_features(clip, images), labels
    probe = LinearProbe().fit(
        *seen["train"],
        torch.eye(3, clip.model.visual.output_dim),
        logit_scale=1.0,
        validation=seen["validation"],
    )
    head = saving.load(run.directory / "adapter" / "head.safetensors")
    torch.testing.assert_close(head.weight_, probe.weight_, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(head.bias_, probe.bias_, rtol=1e-3, atol=1e-3)
    right = probe.logits(seen["test"][0]).argmax(1) == seen["test"][1]
    assert metrics["top1"] == pytest.approx(float(right.double().mean()))
    assert metrics["top1"] > metrics["zero_shot_top1"]
    _, trained = run_with(method="lp-ft")
    assert changed(trained, saved) == {"visual"}


def test_the_best_weights_on_validation_are_kept_where_they_are_asked_for(run_with):
    overrides = ["training.steps=6", "training.evaluate_every=1", "training.keep=1", "optim.lr=0.1"]
    _, last = run_with(*overrides)
    _, best = run_with(*overrides, "evaluation.select=best")
    found = results(best)
    assert results(last)["kept_step"] == 6
    assert found["kept_step"] == found["best"]["step"] < 6
    assert any(not torch.equal(value, weights(last)[name]) for name, value in weights(best).items())


def curve(run):
    return list(csv.DictReader((run.directory / "weight_curve.csv").open()))


@pytest.mark.parametrize("prepared", [False, True], ids=["own", "run"])
def test_the_ends_of_the_curve_are_the_models_before_and_after(run_with, saved, prepared):
    data = {"shift": {"dark": {"shift": -40}}, "forgetting": {"classes": 2}}
    overrides = ["training.steps=40", "merge.alphas=[0.5]"]
    _, whole = run_with(*overrides, "merge.alpha=1", method="wise-ft", **data)
    assert weights(whole)["visual.conv1.weight"].dtype == torch.float32
    given = [f"run={whole.directory}"] if prepared else []
    metrics, run = run_with(*overrides, *given, method="wise-ft", **data)
    rows = curve(run)
    assert [float(row["alpha"]) for row in rows] == [0, 0.5, 1]
    assert float(rows[0]["test"]) == metrics["before_top1"]
    assert float(rows[0]["shift_dark"]) == metrics["shift_dark_before_top1"]
    assert float(rows[2]["test"]) == metrics["fine_tuned_top1"]
    assert float(rows[1]["test"]) == metrics["top1"]
    assert float(rows[1]["forgetting"]) == metrics["forgetting_top1"]
    assert metrics["alpha"] == 0.5
    assert "logit_ensemble_top1" in metrics
    assert (run.directory / "figures" / "weight_curve.png").stat().st_size > 10_000
    before = open_clip.create_model(f"local-dir:{saved}").state_dict()
    for name, value in weights(run).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (before[name] + weights(whole)[name]) / 2)


def test_fisher_averaging_weighs_by_what_the_answers_of_each_end_depend_on(run_with, saved):
    _, end = run_with("training.steps=30", method="ft")
    _, other = run_with("training.steps=10", "seed=1", method="ft")
    given = ["merge.alphas=[0.3]", "merge.alpha=0.3", "merge.fisher.samples=6", "merge.fisher.floor=1e-9"]
    given += [f"start={other.directory}", f"run={end.directory}", "merge.average=fisher"]
    metrics, run = run_with(*given, method="wise-ft")
    states, fishers = [], []
    for each in (other, end):
        clip, trained = (
            load(str(each.directory)),
            saving.load(each.directory / "adapter" / "head.safetensors"),
        )
        head = Head(merging.linear(trained.weight_, trained.bias_), ["red", "green", "blue"])
        states.append(state_of(clip, head))
        options = {"templates": ["{}"], "samples": 6, "workers": 0}
        fishers.append(fisher_of(clip, head, Paints("train"), **options))
    expected = fisher_average(*states, 0.3, tuple(fishers), floor=1e-9)
    for name, value in weights(run).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[f"clip.model.{name}"])
    linear = 0.7 * states[0]["clip.model.visual.proj"] + 0.3 * states[1]["clip.model.visual.proj"]
    assert (weights(run)["visual.proj"] - linear).abs().max() > 1e-4
    rows = curve(run)
    assert [float(rows[place]["test"]) for place in (0, 2)] == [
        metrics["before_top1"],
        metrics["fine_tuned_top1"],
    ]


def test_without_heads_the_prompts_of_both_ends_are_what_answers(run_with):
    _, end = run_with("training.steps=20", method="flyp")
    given = [f"run={end.directory}", "merge.alphas=[0.5]", "merge.fisher.samples=4"]
    _, linear = run_with(*given, method="wise-ft")
    _, fisher = run_with(*given, "merge.average=fisher", method="wise-ft")
    name = "token_embedding.weight"
    assert not torch.equal(weights(linear)[name], weights(fisher)[name])


def test_the_curve_between_runs_names_both(run_with, monkeypatch):
    _, start = run_with(method="ft")
    _, end = run_with(method="flyp")
    titles, draw = [], merging.draw
    monkeypatch.setattr(merging, "draw", lambda *args, **kw: titles.append(kw["title"]) or draw(*args, **kw))
    given = [f"run={end.directory}", "merge.alphas=[0.5]"]
    run_with(*given, method="wise-ft")
    run_with(*given, f"start={start.directory}", method="wise-ft")
    assert titles == [
        "micro to finetune/flyp/v0001: wise-ft",
        "finetune/ft/v0001 to finetune/flyp/v0001: wise-ft",
    ]


def test_runs_of_every_method_can_be_merged(run_with):
    for method in ("infonce", "ft"):
        _, whole = run_with("training.steps=30", method=method)
        given = [f"run={method}/latest", "merge.alphas=[0.3]", "merge.alpha=1"]
        metrics, run = run_with(*given, method="wise-ft")
        assert all(torch.equal(value, weights(run)[name]) for name, value in weights(whole).items())
        assert (run.directory / "adapter").is_dir() == (method == "ft")
        assert metrics["top1"] == metrics["fine_tuned_top1"]
        assert "training_seconds" not in metrics


@pytest.mark.parametrize(("first", "second"), [("infonce", "ft"), ("ft", "infonce"), ("ft", "ft")])
def test_the_curve_between_two_runs_ends_at_both(run_with, first, second):
    data = {"shift": {"dark": {"shift": -60}}}
    one, start = run_with("training.steps=10", "seed=1", method=first, **data)
    other, end = run_with("training.steps=30", method=second, **data)
    given = [f"start={start.directory}", f"run={end.directory}", "merge.alphas=[0.5]", "merge.alpha=0.5"]
    metrics, run = run_with(*given, method="wise-ft", **data)
    rows = curve(run)
    assert [float(rows[place]["test"]) for place in (0, 2)] == [one["top1"], other["top1"]]
    assert [float(rows[place]["shift_dark"]) for place in (0, 2)] == [
        each["shift_dark_top1"] for each in (one, other)
    ]
    assert metrics["before_top1"] == one["top1"]
    assert metrics["difference"] == pytest.approx(metrics["top1"] - one["top1"])
    assert results(run)["merged_start"] == str(start.directory)
    for name, value in weights(run).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (weights(start)[name] + weights(end)[name]) / 2)
    trained = [each.directory / "adapter" / "head.safetensors" for each in (start, end, run)]
    assert trained[2].is_file()
    if (first, second) == ("ft", "ft"):
        heads = [saving.load(path).weight_ for path in trained]
        torch.testing.assert_close(heads[2], (heads[0] + heads[1]) / 2)


def test_what_two_runs_cannot_be_merged(run_with, begin, checkpoint):
    def refused(*overrides, **options):
        settings, run = begin(*overrides, method="wise-ft", **options)
        with pytest.raises(ClipxError) as caught:
            main(settings, run)
        assert not (run.directory / "model").exists()
        return f"{caught.value.message} {caught.value.hint}"

    _, one = run_with(method="ft")
    _, other = run_with(f"model={checkpoint}", method="ft")
    both = f"start={one.directory}", f"run={other.directory}"
    said = refused(*both)
    assert "different architectures" in said
    assert "clip." in said
    assert "the other" in refused(f"start={one.directory}")
    assert "no run 'nowhere'" in refused("start=nowhere", f"run={one.directory}")
    assert "is for 3 other classes" in refused(f"start={one.directory}", f"run={one.directory}", classes=2)


def test_the_head_of_one_class_and_one_prompt_is_its_embedding_times_the_scale(saved):
    clip = load(saved)
    own = SimpleNamespace(source=SimpleNamespace(classes=["dog"]), templates=["a photo of a {}."])
    plain = clip.double().model
    text = plain.encode_text(clip.tokenize(["a photo of a dog."])).detach()
    assert text.dtype == torch.float64
    expected = plain.logit_scale.detach().exp() * text / text.norm()
    torch.testing.assert_close(_classifier(clip, own).double(), expected, rtol=1e-6, atol=1e-6)


def test_alpha_is_chosen_on_validation(run_with):
    metrics, run = run_with("training.steps=40", "merge.alpha=null", "optim.lr=3e-3", method="wise-ft")
    rows = curve(run)
    assert len(rows) == 11
    best = max(rows, key=lambda row: float(row["validation"]))
    assert metrics["alpha"] == float(best["alpha"])
    assert metrics["top1"] == float(best["test"])


def test_a_path_through_a_valley_is_warned_of(capsys):
    merging._warn_of_a_valley([0.0, 0.4, 1.0], [0.5, 0.45, 0.47])
    assert "alpha=0.4 is worse than both ends" in capsys.readouterr().err
    merging._warn_of_a_valley([0.0, 0.4, 1.0], [0.5, 0.48, 0.47])
    assert capsys.readouterr().err == ""


def test_what_accuracy_is_held_against():
    assert merging.elsewhere({"": [0.1], "validation": [0.2]}) is None
    assert merging.elsewhere({"": [0.1], "forgetting": [0.3]}) == ("forgetting", [0.3])
    one = {"forgetting": [0.3], "shift_a": [0.4]}
    assert merging.elsewhere(one) == ("shift_a", [0.4])
    assert merging.elsewhere({**one, "shift_b": [0.6]}) == ("mean under shift", [0.5])


def test_what_cannot_be_merged(run_with, begin, tmp_path, checkpoint, capsys):
    def refused(*overrides, **options):
        settings, run = begin(*overrides, method="wise-ft", **options)
        with pytest.raises(ClipxError) as caught:
            main(settings, run)
        return f"{caught.value.message} {caught.value.hint}"

    for alphas in ("[0.5,1.1]", "[-0.1]"):
        assert "must lie in [0, 1]" in refused(f"merge.alphas={alphas}")
    assert "alpha=2 must lie" in refused("merge.alpha=2")
    assert "is no list" in refused("merge.alphas=[]")
    assert "did you mean 'fisher'" in refused("merge.average=fischer")
    assert "merge.fisher.samples=0" in refused("merge.fisher.samples=0")
    assert "must be above 0" in refused("merge.fisher.floor=0")
    assert "no run 'nowhere'" in refused("run=nowhere")
    assert "no labels to learn from" in refused(classes=0)
    run_with(method="ft")
    said = refused("run=ft/latest", f"model={checkpoint}")
    assert "different architectures" in said
    assert "started from model=" in capsys.readouterr().err
    assert "is for 3 other classes" in refused("run=ft/latest", classes=2)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number, colour in enumerate(["red", "blue"] * 15):
        path = folder / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = np.random.default_rng(number).integers(0, 60, (40, 40, 3), dtype=np.uint8)
        shade[..., 0 if colour == "red" else 2] += 150
        Image.fromarray(shade).save(path)
    rows = [(str(path.relative_to(folder)), f"a {path.parent.name} wall") for path in folder.rglob("*.png")]
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small random model as open_clip saves one."""
    from safetensors.torch import save_file

    towers = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**towers).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": towers, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def models(checkpoint, saved, tmp_path):
    """What can be fine-tuned, as it is named on a command line: its overrides and its pixels."""
    torch.save(open_clip.create_model(f"local-dir:{saved}").state_dict(), tmp_path / "weights.pt")
    return {
        "tiny": (["model=tiny"], 40),
        "folder": ([f"model={checkpoint}"], 32),
        "safetensors": (["model=micro", f"model.pretrained={saved}/open_clip_model.safetensors"], 32),
        "torch": (["model=micro", f"model.pretrained={tmp_path}/weights.pt"], 32),
    }


@pytest.mark.parametrize("model", ["tiny", "folder", "safetensors", "torch"])
@pytest.mark.parametrize("pairs", ["classes", "captions"])
def test_own_folders_train_in_one_line(photos, models, tmp_path, model, pairs):
    named, size = models[model]
    overrides = [*named, "data=folder", f"data.root={photos}", "loader.workers=0"]
    overrides += ["data.captions=captions.csv"] if pairs == "captions" else []
    overrides += ["training.epochs=1", "training.batch_size=8", "evaluation.elsewhere_limit=16"]
    settings = resolve(compose("finetune", overrides))
    with Run.create(tmp_path / "outputs", "finetune", "infonce", settings) as run:
        metrics = main(settings, run)
    key = "top1" if pairs == "classes" else "image_to_text_recall@1"
    assert {key, f"before_{key}", "forgetting_top1", "forgetting_before_top1"} <= metrics.keys()
    lost = metrics["forgetting_top1"] - metrics["forgetting_before_top1"]
    assert metrics["forgetting_difference"] == pytest.approx(lost)
    assert load(str(run.directory)).image_size == size


def test_mistakes_are_told_before_anything_is_trained(begin):
    def refused(*overrides, **options):
        settings, run = begin(*overrides, **options)
        with pytest.raises(ClipxError) as caught:
            main(settings, run)
        assert run.metrics() == []
        return f"{caught.value.message} {caught.value.hint}"

    for lr in ("0", "-1e-4"):
        assert "trains nothing" in refused(f"optim.lr={lr}")
    frozen = ["lock.image=true", "lock.text=true", "lock.scale=true"]
    assert "every parameter is frozen" in refused(*frozen)
    for method in ("ft", "ft-clip", "lp-ft", "flyp", "flyp-ce", "wise-ft"):
        assert "no labels to learn from" in refused(method=method, classes=0)
    assert "pairs=labels" in refused("pairs=captions", method="ft-clip")
    assert "did you mean 'labels'" in refused("pairs=label")
    assert "did you mean 'best'" in refused("evaluation.select=bst")
    assert "training.warmup" in refused("training.warmup=-1")
    assert "optim.layer_decay=2" in refused("optim.layer_decay=2")
    assert "micro has random weights" in refused("model=micro", "model.pretrained=null")
    assert "did you mean 'equal'" in refused("objectives.flyp.targets=equa", method="flyp")
    said = refused("objectives.prompt_cross_entropy.templates=averag", method="flyp-ce")
    assert "did you mean 'average'" in said


def test_every_parameter_of_a_locked_model_may_be_frozen_where_a_head_learns(run_with, saved):
    metrics, run = run_with("lock.image=true", "training.steps=60", "optim.lr=0.1", method="ft-clip")
    assert changed(run, saved) == set()
    assert metrics["zero_shot_top1"] == metrics["before_top1"]
    assert metrics["top1"] > metrics["before_top1"]
