import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from clipx.data.fields import UNLABELLED
from clipx.errors import BadSample, ClipxError
from clipx.features.encode import check_finite, embed_texts, encode, evaluating
from clipx.features.selection import evenly, rest_of
from clipx.models.clip import images_to_features
from clipx.models.loading import load


class Photos:
    """Images whose pixels, label and captions follow from the index; some cannot be used."""

    name = "photos"
    classes = ["ant", "bee", "cow"]
    templates = None

    def __init__(self, size=23, bad=(5, 6, 7, 22), captions=True, die_at=None):
        self.size, self.bad, self.captions, self.die_at = size, bad, captions, die_at

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.bad:
            raise BadSample("blank caption" if index == 22 else f"truncated: {index}.jpg")
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        captions = [f"number {index}", f"one of {index % 4}", f"one of {index % 4}"] if self.captions else []
        return {"image": pixels, "captions": captions, "label": index % 3, "id": f"photo {index}"}

    def examples(self, indices):
        found = []
        for index in indices:
            try:
                found.append(self[index])
            except BadSample as problem:
                found.append(problem)
        return found

    def fingerprint(self):
        return f"photos {self.size} {self.captions}"


class Stream:
    """The same as a stream, without a fingerprint."""

    name, classes, templates, size = "stream", Photos.classes, None, 23

    def __init__(self):
        self.photos = Photos()
        self.opened = []

    def stream(self, *, skip, **share):
        self.opened.append(skip)
        return iter(self.photos.examples(range(skip, 23)))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load("micro")


def run(clip, source, root, **options):
    return encode(clip, source, split="test", root=root, batch_size=4, workers=0, record_seconds=0, **options)


def test_what_is_stored(clip, tmp_path):
    source = Photos()
    features = run(clip, source, tmp_path)
    good = [index for index in range(23) if index not in source.bad]
    assert features.index.tolist() == good
    assert features.ids == [f"photo {index}" for index in good]
    assert features.labels.tolist() == [index % 3 for index in good]
    assert features.skipped == {"truncated": 3, "blank caption": 1}
    assert len(features) == 19
    assert len(features.texts) == len(set(features.texts)) == 19 + 4
    captions = {(features.index[row].item(), features.texts[text]) for row, text in features.pairs.tolist()}
    assert captions == {(i, text) for i in good for text in (f"number {i}", f"one of {i % 4}")}
    images = torch.stack([clip.preprocess(source[index]["image"]) for index in good])
    assert torch.allclose(features.image, images_to_features(clip, images), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(features.text, clip.encode_text(clip.tokenize(features.texts)), atol=1e-6)


def test_a_second_call_does_not_encode(clip, tmp_path, monkeypatch):
    first = run(clip, Photos(), tmp_path)
    monkeypatch.setattr(type(clip), "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    monkeypatch.setattr(type(clip), "encode_text", lambda *_, **__: pytest.fail("encoded twice"))
    second = run(clip, Photos(), tmp_path)
    assert first.encoded
    assert not second.encoded
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.text, second.text)
    assert first.skipped == second.skipped
    assert first.ids == second.ids


def test_texts_can_come_later(clip, tmp_path, monkeypatch):
    assert run(clip, Photos(), tmp_path, text=False).text is None
    monkeypatch.setattr(type(clip), "encode_image", lambda *_, **__: pytest.fail("encoded twice"))
    assert run(clip, Photos(), tmp_path).text is not None
    assert run(clip, Photos(), tmp_path, text=False).text is None


@pytest.mark.parametrize("change", ["weights", "source", "split", "precision", "limit", "preprocess"])
def test_another_key_is_another_entry(clip, tmp_path, change):
    run(clip, Photos(), tmp_path)
    other, source, options = clip, Photos(), {"split": "test"}
    if change == "weights":
        torch.manual_seed(1)
        other = load("micro")
    elif change == "preprocess":
        torch.manual_seed(0)
        other = load("micro")
        other.preprocess_cfg = {**other.preprocess_cfg, "interpolation": "bilinear"}
    elif change == "source":
        source = Photos(captions=False)
    else:
        options |= {"split": "validation"} if change == "split" else {}
        options |= {"precision": "bf16"} if change == "precision" else {}
        options |= {"limit": 9} if change == "limit" else {}
    assert encode(other, source, root=tmp_path, batch_size=4, workers=0, **options).encoded


def test_batch_size_and_workers_do_not_matter(clip, tmp_path):
    whole = run(clip, Photos(), tmp_path)
    for batch_size, workers in ((1, 0), (3, 2)):
        root = tmp_path / f"{batch_size}"
        other = encode(clip, Photos(), split="test", root=root, batch_size=batch_size, workers=workers)
        assert torch.allclose(whole.image, other.image, atol=1e-6)
        assert whole.texts == other.texts
        assert torch.equal(whole.pairs, other.pairs)
        assert whole.skipped == other.skipped


@pytest.mark.parametrize("die_at", [4, 7, 13, 21])
def test_a_killed_encoding_is_gone_on_from(clip, tmp_path, die_at):
    whole = run(clip, Photos(), tmp_path / "whole")

    def doomed():
        torch.set_num_threads(1)
        run(clip, Photos(die_at=die_at), tmp_path / "killed")

    child = multiprocessing.get_context("fork").Process(target=doomed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    seen = []
    resumed = run(
        clip, Photos(), tmp_path / "killed", progress=lambda bank, done, total: seen.append((bank, done))
    )
    assert seen[0] == ("image", min(die_at // 4 * 4 + 4, 23))
    assert torch.equal(resumed.image, whole.image)
    assert torch.equal(resumed.pairs, whole.pairs)
    assert torch.equal(resumed.index, whole.index)
    assert (resumed.ids, resumed.texts, resumed.skipped) == (whole.ids, whole.texts, whole.skipped)


def test_a_killed_text_encoding_is_gone_on_from(clip, tmp_path, monkeypatch):
    whole = run(clip, Photos(), tmp_path / "whole")
    real, calls = type(clip).encode_text, []

    def failing(self, tokens, normalize=True):
        calls.append(len(tokens))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, tokens, normalize)

    monkeypatch.setattr(type(clip), "encode_text", failing)
    with pytest.raises(KeyboardInterrupt):
        run(clip, Photos(), tmp_path / "cut")
    resumed = run(clip, Photos(), tmp_path / "cut")
    assert torch.equal(resumed.text, whole.text)
    assert sum(calls) == 4 + len(whole.texts)


def test_a_limit_is_spread_over_the_source(clip, tmp_path):
    features = run(clip, Photos(bad=()), tmp_path, limit=6)
    assert features.index.tolist() == [0, 3, 7, 11, 15, 19]
    assert len(run(clip, Photos(bad=()), tmp_path, limit=100)) == 23
    assert not run(clip, Photos(bad=()), tmp_path).encoded


def test_a_stream_is_read_once_and_not_kept(clip, tmp_path):
    stream, seen = Stream(), []
    features = run(clip, stream, tmp_path, progress=lambda *told: seen.append(told))
    whole = run(clip, Photos(), tmp_path)
    assert torch.equal(features.image, whole.image)
    assert torch.equal(features.text, whole.text)
    assert features.skipped == whole.skipped
    assert stream.opened == [0]
    assert ("image", 23, 23) in seen
    assert len(run(clip, Stream(), tmp_path, limit=5)) == 5


def test_a_stream_with_a_fingerprint_is_kept_and_gone_on_from(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(Stream, "fingerprint", lambda self: "shards", raising=False)

    class Broken(Stream):
        def stream(self, *, skip, **share):
            for place, example in enumerate(super().stream(skip=skip, **share)):
                if place == 10:
                    raise KeyboardInterrupt
                yield example

    with pytest.raises(KeyboardInterrupt):
        run(clip, Broken(), tmp_path)
    stream = Stream()
    features = run(clip, stream, tmp_path)
    whole = run(clip, Photos(), tmp_path)
    assert stream.opened == [8]
    assert torch.equal(features.image, whole.image)
    assert features.ids == whole.ids
    assert features.index.tolist() == whole.index.tolist()
    assert not run(clip, Stream(), tmp_path).encoded


def test_unlabelled_without_captions(clip, tmp_path):
    class Bare(Photos):
        classes = None

        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {"image": example["image"], "id": example["id"]}

    features = run(clip, Bare(bad=(), captions=False), tmp_path)
    assert set(features.labels.tolist()) == {UNLABELLED}
    assert features.text is None
    assert features.pairs.shape == (0, 2)


def test_nothing_usable_names_the_reasons(clip, tmp_path):
    for _ in range(2):
        with pytest.raises(ClipxError, match=r"no sample .* truncated \(3\)"):
            run(clip, Photos(size=3, bad=(0, 1, 2)), tmp_path)
    with pytest.raises(ClipxError, match="there is none"):
        run(clip, Photos(size=0), tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"precision": "fp61"}, "fp61"), ({"limit": 0}, "limit=0")])
def test_wrong_options(clip, tmp_path, options, message):
    with pytest.raises(ClipxError, match=message):
        run(clip, Photos(), tmp_path, **options)


def test_weights_that_are_not_finite(tmp_path):
    broken = load("micro")
    torch.nn.init.constant_(broken.model.visual.conv1.weight, float("nan"))
    with pytest.raises(ClipxError, match=r"image tower gives NaN or infinity for 'photo 0'"):
        run(broken, Photos(), tmp_path)
    with pytest.raises(ClipxError, match=r"text tower .* 'b'"):
        check_finite(torch.tensor([[1.0], [float("inf")]]), "text", ["a", "b"])


def test_training_mode_is_restored(clip):
    clip.train()
    with evaluating(clip):
        assert not clip.training
        assert not torch.is_grad_enabled()
    assert clip.training
    clip.eval()


def test_reduced_precision_is_close(clip):
    exact = embed_texts(clip, ["a cat", "two dogs"])
    near = embed_texts(clip, ["a cat", "two dogs"], precision="bf16")
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    assert torch.allclose(exact, near, atol=0.05)


def test_selections():
    source = Photos(bad=())
    assert evenly(source, 3)[1]["id"] == "photo 7"
    assert rest_of(source, 0) is source
    rest = rest_of(evenly(source, 5), 2)
    assert [example["id"] for example in rest.examples([0, 1, 2])] == ["photo 9", "photo 13", "photo 18"]
