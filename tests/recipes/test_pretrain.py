import json
import os
import signal
import subprocess

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clipx.config import compose, resolve
from clipx.data.fields import VIEWS
from clipx.errors import BadSample, ClipxError
from clipx.models.loading import load
from clipx.recipes import fitting, parts
from clipx.recipes.fitting import loop_settings
from clipx.recipes.pretrain import main, shifted
from clipx.run import Interrupted, Run
from clipx.training.checkpoints import Checkpoints

SMALL = ["model=micro", "training.steps=4", "training.batch_size=8", "training.warmup=0", "loader.workers=0"]
SCENES = ["data.size=32", "data.test_size=24", "data.validation_size=16", "data.image_size=32"]
SCENES += ["data.shapes=[circle, star]", "data.colours=[red, blue]"]
TIMED = {"images_per_second", "data_wait"}
stop_at: dict[str, int] = {}
"""Example of ``Photos`` at whose reading the process gets a SIGTERM, or nothing."""


class Photos:
    """A source of 24 pictures with captions, of which some cannot be used."""

    name, classes, templates = "photos", ["ant", "bee", "cow"], None

    def __init__(self, split, bad=0, bad_split="train"):
        self.split, self.bad = split, bad if split == bad_split else 0

    def __len__(self):
        return 24

    def examples(self, indices):
        return [self.example(index) for index in indices]

    def example(self, index):
        if stop_at.get(self.split) == index:
            del stop_at[self.split]
            os.kill(os.getpid(), signal.SIGTERM)
        if index < self.bad:
            return BadSample(f"truncated image: {index}.jpg")
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return {"image": pixels, "captions": [f"number {index}"], "id": str(index), "label": index % 3}


class Negatives(nn.Module):
    """An objective that asks for what few data have."""

    needs = ("image", "negative_text")

    def forward(self, encoded):
        return {"negatives": (encoded.image() * encoded.text("negative_text")).mean()}


@pytest.fixture
def begin(tmp_path):
    """Compose a configuration and open its run."""

    def start(*overrides, source=None):
        settings = resolve(compose("pretrain", [*SMALL, *overrides]))
        if source is not None:
            OmegaConf.set_struct(settings, False)
            settings.data = {"_target_": f"{__name__}.Photos", **source}
        return settings, Run.create(tmp_path / "outputs", "pretrain", "infonce", settings)

    return start


@pytest.fixture
def run_with(begin):
    """Run the recipe with overrides; returns its metrics and the run."""

    def start(*overrides, source=None):
        settings, run = begin(*overrides, source=source)
        with run:
            return main(settings, run), run

    return start


def results(run):
    return json.loads((run.directory / "results.json").read_text())


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.directory / "model" / "open_clip_model.safetensors")


def untimed(run):
    return [{key: value for key, value in record.items() if key not in TIMED} for record in run.metrics()]


def test_what_is_locked_keeps_its_first_weights(run_with):
    _, run = run_with(*SCENES, "lock.first_convolution=true")
    torch.manual_seed(0)
    start = load("micro").model.state_dict()
    kept = {name for name, value in weights(run).items() if torch.equal(value, start[name])}
    assert "visual.conv1.weight" in kept
    assert "visual.proj" not in kept


def test_how_images_and_texts_lie_is_measured_where_it_is_asked_for(run_with):
    without, _ = run_with(*SCENES)
    assert "alignment" not in without
    metrics, run = run_with(*SCENES, "evaluation.geometry=true")
    assert metrics["alignment"] == pytest.approx(2 - 2 * metrics["paired_cosine"])
    assert 0 < metrics["centroid_distance"] <= 2
    source = parts.open_source(compose("pretrain", [*SMALL, *SCENES]).data, "test")
    clip = load(str(run.directory / "model")).eval()
    examples = source.examples(range(24))
    with torch.no_grad():
        image = clip.encode_image(
            clip.normalize(torch.stack([clip.preprocess(e["image"]) for e in examples]))
        )
        text = clip.encode_text(clip.tokenize([e["captions"][0] for e in examples]))
    assert metrics["paired_cosine"] == pytest.approx(float((image * text).sum(1).mean()), abs=1e-5)


def test_a_model_that_compares_otherwise_goes_without_figures_of_cosines(run_with, capsys):
    metrics, _ = run_with(*SCENES, "evaluation.geometry=true", "model.comparison={kind: euclidean-squared}")
    assert "top1" in metrics
    assert "alignment" not in metrics
    assert "compares by euclidean-squared: they are left out" in capsys.readouterr().err


def test_scenes_train_a_model_that_open_clip_loads_and_that_gives_the_same_features(run_with):
    metrics, run = run_with(*SCENES, "training.evaluate_every=2", "training.checkpoint_every=2")
    assert {"top1", "image_to_text_recall@1", "training_seconds", "images_per_second"} <= metrics.keys()
    found = results(run)
    assert found["steps"] == 4
    assert found["images_per_second"] > 0
    assert found["skipped"] == {"train": {}, "validation": {}, "test": {}}
    assert found["best"]["metric"] == "top1"
    assert found["best"]["step"] in (2, 4)
    assert [record["step"] for record in run.metrics() if "validation/top1" in record] == [2, 4]
    assert any(str(run.directory) in line for line in run.next)

    ours = load(str(run.directory)).eval()
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{run.directory / 'model'}")
    theirs.eval()
    from clipx.data.sources.scenes import Scenes
    from clipx.data.transforms import to_pil

    pictures = [example["image"] for example in Scenes("test", image_size=32).examples(range(4))]
    tokens = ours.tokenize(["a red circle", "a blue star"])
    with torch.no_grad():
        mine = ours.encode_image(ours.normalize(torch.stack([ours.preprocess(p) for p in pictures])))
        other = theirs.encode_image(torch.stack([preprocess(to_pil(p)) for p in pictures]), normalize=True)
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
        text = theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(ours.encode_text(tokens), text, atol=1e-5, rtol=0)


def test_a_run_that_a_signal_stopped_is_resumed_to_the_same_end(run_with, begin):
    overrides = ["training.steps=6", "training.ema=0.8", "training.log_every=2", "training.evaluate_every=2"]
    _, whole = run_with(*overrides, source={})
    settings, run = begin(*overrides, source={})
    stop_at["train"] = 7
    with pytest.raises(Interrupted) as caught, run:
        main(settings, run)
    assert caught.value.signum == signal.SIGTERM
    status = json.loads((run.directory / "status.json").read_text())
    assert (status["status"], status["error"]) == ("interrupted", "stopped by SIGTERM")
    assert not (run.directory / "model").exists()
    with Run.open(run.directory) as again:
        main(settings, again)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    assert untimed(again) == untimed(whole)
    clocked = {"images_per_second", "data_wait", "training_seconds"}
    kept = [{k: v for k, v in results(one).items() if k not in clocked} for one in (whole, again)]
    assert kept[0] == kept[1]


def test_a_gradient_cache_trains_on_the_whole_batch(run_with):
    _, whole = run_with("training.batch_size=16", *SCENES)
    _, cached = run_with("training.batch_size=16", "training.gradient_cache=5", *SCENES)
    assert [record["loss"] for record in cached.metrics() if "loss" in record] == pytest.approx(
        [record["loss"] for record in whole.metrics() if "loss" in record], rel=1e-4
    )
    with pytest.raises(ClipxError, match=r"training\.gradient_cache=17 must lie between 1 and"):
        run_with("training.batch_size=16", "training.gradient_cache=17", *SCENES)


def test_what_the_average_is_is_what_is_saved(run_with):
    _, plain = run_with(source={})
    _, averaged = run_with("training.ema=0.5", source={})
    assert any(not torch.equal(value, weights(plain)[name]) for name, value in weights(averaged).items())


def test_siglip_trains_its_bias(run_with):
    settings = resolve(compose("pretrain", [*SMALL, *SCENES], method="siglip"))
    assert settings.model.init_logit_bias == -10.0
    _, run = run_with("method/pretrain@_global_=siglip", *SCENES)
    assert "siglip" in run.metrics()[0]
    assert weights(run)["logit_bias"] != -10.0


def test_bad_samples_are_counted_by_reason(run_with):
    _, run = run_with(source={"bad": 3})
    assert results(run)["skipped"]["train"] == {"truncated image": 3}
    _, run = run_with(source={"bad": 2, "bad_split": "test"})
    assert results(run)["skipped"]["test"] == {"truncated image": 2}


def test_too_many_bad_samples(run_with):
    with pytest.raises(ClipxError, match=r"cannot be used.*training.max_bad=0.1"):
        run_with(source={"bad": 20})


def test_a_split_without_one_good_sample(run_with):
    with pytest.raises(ClipxError, match=r"no sample of the split.*24 x truncated image"):
        run_with("training.evaluate_every=2", source={"bad": 24, "bad_split": "validation"})


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(tmp_path, begin):
    (tmp_path / "outputs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path / "outputs")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        settings, run = begin("training.checkpoint_every=1", "training.keep=8", "training.steps=8", source={})
        with (
            pytest.raises(ClipxError, match="No space left on device; the checkpoint of step") as caught,
            run,
        ):
            main(settings, run)
        assert "--resume" in caught.value.hint
        status = json.loads((run.directory / "status.json").read_text())
        assert status["status"] == "failed"
        assert Checkpoints(run.directory / "checkpoints").newest(aloud=False).step >= 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "outputs")], check=True)


def test_a_field_that_no_data_gives_is_named_before_the_first_step(begin):
    settings, run = begin(source={"bad": 2})
    settings.objectives = {"negatives": {"_target_": f"{__name__}.Negatives"}}
    with pytest.raises(ClipxError, match="negative_text"):
        main(settings, run)
    assert run.metrics() == []


def test_the_fields_of_data_are_read_off_the_first_good_example():
    assert parts.batch_fields(Photos("train")) == {"image", "text", "label", "index", *VIEWS}

    class Rich(Photos):
        def example(self, index):
            example = super().example(index)
            return example if isinstance(example, BadSample) else {**example, "negative_captions": ["no"]}

    assert "negative_text" in parts.batch_fields(Rich("train", bad=5))


def test_tensorboard_gets_the_metrics(run_with):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = run_with("tracker=tensorboard", source={})
    (events,) = run.directory.rglob("events.out.tfevents.*.0")
    assert events.is_relative_to(run.directory / "tracker")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert {"loss", "lr", "validation/top1"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("loss")] == [1, 4]


def test_a_tracker_that_is_not_installed(run_with, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ClipxError, match=r"wandb is not installed") as caught:
        run_with("tracker=wandb", source={})
    assert "clipx[trackers]" in caught.value.hint


def test_trackers_are_finished_also_after_an_error(run_with, monkeypatch):
    finished = []
    monkeypatch.setattr(
        "accelerate.tracking.TensorBoardTracker.finish", lambda self: finished.append(self.run_name)
    )
    with pytest.raises(ClipxError):
        run_with("tracker=tensorboard", source={"bad": 24})
    assert finished == ["clipx"]


def test_a_process_that_does_not_write_trains_and_leaves_nothing(begin, tmp_path):
    settings, _ = begin("tracker=tensorboard", source={})
    before = sorted(tmp_path.rglob("*"))
    assert main(settings, Run(None, writes=False)) == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_folder_of_an_earlier_start_is_replaced(begin):
    settings, run = begin(source={})
    (run.path("model") / "stray").write_text("half")
    with run:
        main(settings, run)
    assert not (run.directory / "model" / "stray").exists()
    assert [path.name for path in run.directory.iterdir() if path.name.startswith(".model")] == []


def test_the_test_split_may_be_shifted():
    settings = compose("pretrain", ["evaluation.shift={style: [sketch], objects: 1}"])
    data = shifted(settings)
    assert (list(data.style), data.objects) == (["sketch"], 1)
    assert settings.data.style is None  # what is trained on stays
    assert shifted(compose("pretrain")) == compose("pretrain").data
    with pytest.raises(ClipxError, match="the data has no 'stile'") as caught:
        shifted(compose("pretrain", ["evaluation.shift={stile: sketch}"]))
    assert "style" in caught.value.hint


def training(**changed):
    node = compose("pretrain", [f"training.{key}={value}" for key, value in changed.items()]).training
    return loop_settings(node, Photos("train"))


def test_epochs_become_steps():
    assert training(epochs=3, batch_size=10).steps == 8  # 72 pairs, the last batch filled up
    assert training(epochs=3, batch_size=5, accumulate=2).steps == 8
    assert training(epochs=0.5, batch_size=6).steps == 2
    assert training(steps=1e3).steps == 1000
    assert training(steps=7, epochs="null").steps == 7


def test_a_batch_holds_no_pair_twice(monkeypatch, capsys):
    settings = training(epochs=3, batch_size=25)
    assert (settings.batch_size, settings.steps) == (24, 3)
    assert "takes 24 pairs, not 25" in capsys.readouterr().err
    assert training(steps=5, batch_size=24).batch_size == 24
    assert "pairs" not in capsys.readouterr().err
    monkeypatch.setattr(fitting, "world", lambda: (0, 5))
    assert training(epochs=3, batch_size=6).batch_size == 4


def test_epochs_count_over_all_processes(monkeypatch):
    monkeypatch.setattr(fitting, "world", lambda: (0, 2))
    assert training(epochs=3, batch_size=6).steps == 6


@pytest.mark.parametrize("epochs", ["null", 0, -1])
def test_neither_steps_nor_epochs(epochs):
    with pytest.raises(ClipxError, match=r"training.epochs") as caught:
        training(epochs=epochs)
    assert "training.steps" in caught.value.hint


def test_epochs_of_a_stream_of_unknown_size():
    class Stream:
        size = None

        def stream(self): ...

    with pytest.raises(ClipxError, match=r"data of known size"):
        loop_settings(compose("pretrain").training, Stream())


def test_a_warm_up_longer_than_a_fifth_of_the_run_is_shortened_aloud(capsys):
    assert training(steps=20, warmup=100).warmup == 4
    assert "warm-up takes 4 of the 20 steps, not 100" in capsys.readouterr().err
    assert training(steps=1000, warmup=100).warmup == 100
    assert "warm-up" not in capsys.readouterr().err


def test_a_warm_up_that_is_not_said_is_clips_or_a_fifth_of_the_run(capsys):
    assert [training(steps=steps).warmup for steps in (448, 9_999, 100_000)] == [89, 1999, 2000]
    assert "warm-up" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "mistake", ["evaluation.shift=3", "evaluation.shift={colour:red}", "logit_scale=abc"]
)
def test_what_settings_without_a_type_cannot_be(run_with, mistake):
    with pytest.raises(ClipxError) as caught:
        run_with(*SCENES, mistake)
    assert caught.value.hint
