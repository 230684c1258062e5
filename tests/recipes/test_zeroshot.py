import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clipx.config import compose, resolve
from clipx.errors import BadSample, ClipxError
from clipx.inference.evaluation import Evaluation
from clipx.inference.zero_shot import classify
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.recipes import frozen, zeroshot
from clipx.recipes.parts import open_source
from clipx.run import Run

SMALL = ["data.size=8", "data.test_size=40", "data.validation_size=8", "batch_size=16", "loader.workers=0"]
SMALL += ["data.shapes=[circle, star]", "data.colours=[red, blue]"]


class Photos:
    """A source of twelve pictures, of which some cannot be used; given by configuration as any other."""

    name, templates = "photos", None

    def __init__(self, split, bad=0, captions=False, labels=True, stream=False):
        self.split, self.bad, self.captions, self.labels = split, bad, captions, labels
        self.classes = ["ant", "bee", "cow"] if labels else None
        if stream:
            self.stream, self.size = self._stream, 12

    def __len__(self):
        return 12

    def example(self, index):
        if index < self.bad:
            return BadSample(f"truncated image: {index}.jpg")
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        label = {"label": index % 3} if self.labels else {}
        captions = [f"number {index}"] if self.captions else []
        return {"image": pixels, "captions": captions, "id": str(index), **label}

    def examples(self, indices):
        return [self.example(index) for index in indices]

    def _stream(self, *, skip, **share):
        return iter(self.examples(range(skip, 12)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(load("micro").save(tmp_path_factory.mktemp("model") / "micro"))


@pytest.fixture
def run_with(saved, tmp_path, monkeypatch):
    """Run the recipe with overrides; returns its metrics and the run."""
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))

    def start(*overrides, source=None):
        settings = resolve(compose("zeroshot", [f"model={saved}", *overrides]))
        if source is not None:
            OmegaConf.set_struct(settings, False)
            settings.data = {"_target_": f"{__name__}.Photos", **source}
        with Run.create(tmp_path / "outputs", "zeroshot", "zero-shot", settings) as run:
            return zeroshot.main(settings, run), run

    return start


def results(run):
    return json.loads((run.directory / "results.json").read_text())


def test_scenes_are_classified_and_retrieved(run_with, saved):
    metrics, run = run_with(*SMALL)
    source = open_source(compose("zeroshot", SMALL).data, "test")
    expected = Evaluation(source, workers=0)(load(saved).eval())
    assert metrics == pytest.approx(expected, abs=1e-3)
    found = results(run)
    assert found["samples"] == 40
    assert found["skipped"] == {"test": {}}
    assert found["classes"] == len(source.classes)
    low, high = found["intervals"]["top1"]
    assert low <= metrics["top1"] <= high
    with Image.open(run.path("figures", "confusion.png")) as figure:
        assert figure.width > 400
    table = (run.directory / "table.md").read_text()
    assert f"| top1 | {metrics['top1']:.3f} |" in table
    classes = (run.directory / "per_class.csv").read_text().splitlines()
    assert len(classes) == 1 + len(source.classes)
    assert run.next


def test_a_second_run_does_not_encode(run_with, monkeypatch):
    first, _ = run_with(*SMALL)
    monkeypatch.setattr(CLIP, "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    second, _ = run_with(*SMALL)
    assert first == second


@pytest.mark.parametrize(
    ("task", "measured"),
    [
        ("classification", {"top1"}),
        ("retrieval", {"text_to_image_map"}),
        ("[retrieval,classification]", None),
    ],
)
def test_tasks_can_be_chosen(run_with, task, measured):
    metrics, run = run_with(f"task={task}", source={"captions": True})
    both = {"top1", "text_to_image_map"}
    assert both & set(metrics) == (measured or both)
    assert (run.directory / "per_class.csv").exists() == ("top1" in metrics)


@pytest.mark.parametrize(
    ("overrides", "source", "message"),
    [
        (["task=clasification"], {}, "no task 'clasification'"),
        (["task=retrieval"], {}, "does not allow retrieval"),
        (
            ["task=[classification,retrieval]"],
            {"labels": False, "captions": True},
            "does not allow classification",
        ),
        ([], {"labels": False}, "does not allow classification or retrieval"),
        (["labels=[ant, bee]"], {}, "label 2 is outside the 2 classes"),
        (["templates=[no place]"], {}, "no place"),
        (["split=test", "device=gpu"], {}, "device=gpu"),
    ],
)
def test_what_cannot_be_done_is_said(run_with, overrides, source, message):
    with pytest.raises(ClipxError, match=message):
        run_with(*overrides, source=source)


def test_bad_samples_are_counted_and_tolerated_up_to_a_limit(run_with, capsys):
    metrics, run = run_with("max_bad=0.3", source={"bad": 3})
    assert results(run)["skipped"] == {"test": {"truncated image": 3}}
    assert "3 of 12 samples were passed over: truncated image (3)" in capsys.readouterr().err
    assert 0 <= metrics["top1"] <= 1
    with pytest.raises(ClipxError, match="3 of 12 samples cannot be used") as raised:
        run_with("max_bad=0.1", source={"bad": 3})
    assert "max_bad=0.1" in raised.value.hint


def test_a_stream_gives_what_its_files_give(run_with):
    streamed, run = run_with(source={"captions": True, "stream": True})
    assert streamed == run_with(source={"captions": True})[0]
    assert results(run)["samples"] == 12
    assert results(run_with("limit=5", source={"stream": True})[1])["samples"] == 5


def test_class_names_and_templates_can_be_given(run_with):
    plain, run = run_with(source={})
    assert results(run)["templates"] == ["a photo of a {}."]
    named, run = run_with("labels=[a1, b2, c3]", 'templates=["one {}", "two {}"]', source={})
    assert results(run)["templates"] == ["one {}", "two {}"]
    assert (run.directory / "per_class.csv").read_text().splitlines()[1].startswith("a1,4,")
    assert results(run_with("templates=cifar10", source={})[1])["templates"][0] == "a photo of a {}."
    assert plain.keys() == named.keys()


def test_a_card_may_bring_another_classifier(run_with):
    with pytest.raises(ClipxError, match="there is no such"):
        run_with(f"classifier._target_={__name__}.refuse", source={})


def refuse(clip, names, templates, *, batch_size):
    raise ClipxError("there is no such classifier")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (50, 40), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_labels_are_ranked_for_an_image(run_with, pictures, saved):
    shares, run = run_with(f"image={pictures}/a.png", "labels=[cat, dog, cow]")
    with Image.open(pictures / "a.png") as image:
        expected = classify(load(saved).eval(), [image.convert("RGB")], ["cat", "dog", "cow"])[0]
    assert shares == pytest.approx(dict(zip(["cat", "dog", "cow"], expected.tolist(), strict=True)), abs=1e-5)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert results(run)["predictions"] == [{"image": f"{pictures}/a.png", "labels": shares}]


@pytest.mark.parametrize(
    "given", ["{0}", "{0}/*.*g", "[{0}/a.png, {0}/b.jpg]", "[{0}/*.png, {0}, {0}/b.jpg]"]
)
def test_several_images(run_with, pictures, given):
    shares, run = run_with(
        f"image={given.format(pictures)}", "labels=[cat, dog, cow]", "top=1", "batch_size=1"
    )
    assert [each["image"] for each in results(run)["predictions"]] == [
        f"{pictures}/a.png",
        f"{pictures}/b.jpg",
    ]
    assert len(shares) == 2
    assert all(name.startswith(f"{pictures}/") for name in shares)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        ("a.png", "null", "needs labels"),
        ("a.png", "[]", "needs labels"),
        ("c.png", "[cat]", "names no image file"),
        ("notes.txt", "[cat]", "notes.txt cannot be used: not an image"),
        ("a.png", "[cat,' ']", "blank name"),
    ],
)
def test_images_or_labels_that_do_not_do(run_with, pictures, image, labels, message):
    with pytest.raises(ClipxError, match=message):
        run_with(f"image={pictures}/{image}", f"labels={labels}")


def test_a_bad_image_among_good_ones_is_passed_over(run_with, pictures, capsys):
    shares, run = run_with(f"image={pictures}/*", "labels=[cat]")
    assert len(shares) == 2
    assert results(run)["skipped"] == {"image": {"not an image": 1}}
    assert "notes.txt" in capsys.readouterr().err
    (pictures / "more.txt").write_text("nor this")
    with pytest.raises(ClipxError, match="none of the 2 files"):
        run_with(f"image={pictures}/*.txt", "labels=[cat]")


def test_random_weights_are_refused():
    for name, hint in (("micro", "train it"), ("ViT-B-32", "openai")):
        with pytest.raises(ClipxError, match="random weights") as raised:
            frozen.load_pretrained(OmegaConf.create({"name": name, "pretrained": None}))
        assert hint in raised.value.hint


def test_a_preset_brings_its_own_weights(saved, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(frozen, "load", lambda **arguments: given.append(arguments) or load(saved))
    monkeypatch.setattr(frozen, "PRESETS", tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "open_clip_model.safetensors").write_bytes(b"")
    frozen.load_pretrained(OmegaConf.create({"name": "tiny", "pretrained": None}))
    assert given[0]["pretrained"] == "tiny"


def test_a_process_that_does_not_write_does_nothing():
    assert zeroshot.main(OmegaConf.create({}), Run(None, writes=False)) == {}
