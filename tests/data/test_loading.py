import pickle

import numpy as np
import pytest
import torch

from clipx.data.loading import (
    captions_of,
    collate,
    count_reasons,
    evaluation_loader,
    is_stream,
    training_loader,
    worker_count,
)
from clipx.data.order import Permutation
from clipx.data.text_changes import TextChange
from clipx.data.transforms import TrainTransform, inference_transform
from clipx.data.views import views_of
from clipx.errors import BadSample, ClipxError

SIZE = 23


def tokenize(texts):
    """The last number of each text."""
    return torch.tensor([[int(text.rsplit(maxsplit=1)[-1])] for text in texts])


def example(index, bad=()):
    if index in bad:
        return BadSample(f"broken image: {index}")
    pixels = np.full((9, 9, 3), index, dtype=np.uint8)
    return {"image": pixels, "captions": [f"number {index}"], "label": index % 3, "id": f"item-{index}"}


class Items:
    """A map-style source of numbered grey squares."""

    classes = ["0", "1", "2"]
    templates = None

    def __init__(self, size=SIZE, bad=(), error=None):
        self.size, self.bad, self.error = size, bad, error

    def __len__(self):
        return self.size

    def examples(self, indices):
        if self.error:
            raise self.error
        return [example(index, self.bad) for index in indices]


class Shards:
    """A stream source: each epoch an order of its own, dealt out to the workers of all processes in turn."""

    classes = ["0", "1", "2"]
    templates = None
    size = None

    def __init__(self, length=SIZE, bad=(), shuffled=True, error=None):
        self.length, self.bad, self.shuffled, self.error = length, bad, shuffled, error

    def stream(self, *, seed, epoch, rank, world, worker, workers, skip):
        order = (
            Permutation(self.length, seed, epoch)(np.arange(self.length))
            if self.shuffled
            else range(self.length)
        )
        share = list(order)[rank * workers + worker :: world * workers]
        if self.error:
            raise self.error
        for index in share[skip:]:
            yield example(int(index), self.bad)


def train(source, steps=(0, 12), workers=0, **arguments):
    options = {"batch_size": 4, "seed": 5, "transform": TrainTransform(8), "tokenize": tokenize}
    loader = training_loader(source, **{**options, "steps": steps, "workers": workers, **arguments})
    batches = iter(loader)
    return [next(batches) for _ in range(steps[1] - steps[0])]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if isinstance(one[key], torch.Tensor):
                assert torch.equal(one[key], other[key]), key
            else:
                assert one[key] == other[key], key


def numbers(batches):
    return [int(number) for batch in batches for number in batch["text"]]


# captions


def test_own_captions_come_first():
    item = {"captions": ["a dog", " ", "", "a puppy"], "label": 1}
    assert captions_of(item, ["cat", "dog"], ["a photo of a {}."]) == ["a dog", "a puppy"]


def test_a_label_becomes_captions_by_templates():
    templates = ["a photo of a {}.", "a drawing of the {}."]
    expected = ["a photo of a dog.", "a drawing of the dog."]
    assert captions_of({"captions": [], "label": 1}, ["cat", "dog"], templates) == expected
    assert captions_of({"label": 1}, ["cat", "dog"], templates) == expected


@pytest.mark.parametrize("label", [2, 99, -2])
def test_a_label_outside_the_classes_is_a_bad_sample(label):
    with pytest.raises(BadSample, match=f"label {label} outside the 2 classes"):
        captions_of({"label": label}, ["cat", "dog"], ["{}"])


@pytest.mark.parametrize(("item", "classes"), [({"label": -1}, ["cat"]), ({}, ["cat"]), ({"label": 0}, None)])
def test_neither_caption_nor_class_is_a_bad_sample(item, classes):
    with pytest.raises(BadSample, match="neither"):
        captions_of(item, classes, ["{}"])


# training, by index


def test_a_batch_holds_its_pairs():
    (batch,) = train(Items(), (0, 1))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["image"].dtype == torch.uint8
    assert batch["text"].shape == (4, 1)
    for place, index in enumerate(batch["index"].tolist()):
        assert (batch["image"][place] == index).all()
        assert batch["text"][place].item() == index
        assert batch["label"][place].item() == index % 3
    assert batch["bad"] == []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    same(train(Items(bad={3, 4, 9}), workers=workers), train(Items(bad={3, 4, 9})))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_gets_the_batches_that_were_to_come(workers):
    whole = train(Items(bad={3, 4, 9}))
    for first in (1, 7):
        same(train(Items(bad={3, 4, 9}), (first, 12), workers), whole[first:])


def test_processes_together_get_what_one_gets():
    whole = train(Items(), batch_size=8)
    parts = [train(Items(), batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        for key in ("image", "text", "label", "index"):
            assert torch.equal(torch.cat([part[step][key] for part in parts]), batch[key])


def test_a_bad_sample_is_replaced_by_its_neighbour_and_reported():
    bad = {3, 4, 22}
    batches = train(Items(bad=bad), (0, 23))
    wanted = train(Items(), (0, 23))
    replaced = {3: 5, 4: 5, 22: 0}
    assert numbers(batches) == [replaced.get(number, number) for number in numbers(wanted)]
    reports = dict(report for batch in batches for report in batch["bad"])
    assert reports == {str(index): f"broken image: {index}" for index in bad}
    assert count_reasons({**reports, "5": "blank caption"}) == {"broken image": 3, "blank caption": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_data_of_bad_samples_alone_is_an_error(workers):
    with pytest.raises(
        ClipxError, match="1000 samples in a row cannot be used; the last: broken image"
    ) as caught:
        train(Items(bad=range(SIZE)), workers=workers)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_arrives_as_it_is(workers):
    with pytest.raises(ClipxError) as caught:
        train(Items(error=ClipxError("the disk is gone", hint="mount it")), workers=workers)
    assert (caught.value.message, caught.value.hint) == ("the disk is gone", "mount it")


def test_one_sample_is_no_data():
    with pytest.raises(ClipxError, match="1 usable samples"):
        train(Items(size=1))


def test_templates_are_drawn_anew_each_epoch():
    class Labelled(Items):
        def examples(self, indices):
            return [{"image": np.zeros((9, 9, 3), np.uint8), "label": index % 3} for index in indices]

    templates = ["{} 1", "{} 2", "{} 3"]
    drawn = numbers(train(Labelled(), (0, 60), templates=templates))
    assert {drawn.count(n) > 50 for n in (1, 2, 3)} == {True}
    first, second = drawn[:SIZE], drawn[SIZE : 2 * SIZE]
    assert first != second


def test_a_change_is_made_of_captions_but_not_of_their_views():
    class Said(Items):
        def examples(self, indices):
            image = np.zeros((9, 9, 3), np.uint8)
            return [{"image": image, "captions": [f"a photo of the {index}"]} for index in indices]

    heard = []

    def listened(texts):
        heard.extend(texts)
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    keep = {"synonyms": 0, "swap": 0, "delete": 0, "keep": 1}
    views = views_of(8, {"view": {}, "text_view": keep}, ["text_view_1"])
    taken = {"tokenize": listened, "extras": ["text_view_1"], "views": views}
    train(Said(), (0, 3), change=TextChange(stop_words=1.0, **keep), **taken)
    short, whole = [text for text in heard if "the" not in text], [text for text in heard if "the" in text]
    assert len(short) == len(whole) == 12
    assert {text.split()[0] for text in short} == {"photo"}
    assert {f"a photo of the {text.split()[-1]}" for text in short} == {*whole}


@pytest.mark.parametrize("source", [Items(bad={3}), Shards(bad={3})], ids=["items", "stream"])
def test_what_captions_mean_is_found_of_a_batch_at_once_before_they_are_changed(source):
    asked = []

    def semantics(captions):
        asked.append(captions)
        return torch.tensor([[float(caption.split()[-1]), 1.0] for caption in captions])

    change = TextChange(0, synonyms=0, swap=1, delete=0, keep=0)
    batches = train(source, (0, 3), semantics=semantics, change=change, tokenize=numbers_in)
    assert [len(captions) for captions in asked] == [4, 4, 4]
    assert {caption.split()[0] for captions in asked for caption in captions} == {"number"}
    for batch in batches:
        assert batch["semantics"].dtype == torch.float32
        assert batch["semantics"].tolist() == [[number, 1] for number in batch["text"][:, 0].tolist()]
        assert "caption" not in batch


def numbers_in(texts):
    """The number in each text, wherever it stands."""
    return torch.tensor([[int(next(filter(str.isdigit, text.split())))] for text in texts])


def test_extras_travel_along():
    class Rich(Items):
        def examples(self, indices):
            return [
                {
                    **example(index),
                    "negative_captions": [f"not {index + 100}"],
                    "negative_image": np.full((9, 9, 3), 7, np.uint8),
                    "boxes": np.ones((1 + index % 2, 4), np.float32),
                    "masks": np.ones((1 + index % 2, 8, 8), bool),
                }
                for index in indices
            ]

    (batch,) = train(Rich(), (0, 1), extras=["negative_text", "negative_image", "boxes", "masks"])
    assert torch.equal(batch["negative_text"], batch["text"] + 100)
    assert (batch["negative_image"] == 7).all()
    for place, index in enumerate(batch["index"].tolist()):
        objects = 1 + index % 2
        assert (batch["boxes"][place, :objects] == 1).all()
        assert (batch["boxes"][place, objects:] == -1).all()
        assert not batch["masks"][place, objects:].any()


def test_collate_joins_reports():
    items = [{"x": 1, "bad": [("a", "r")]}, {"x": 2, "bad": []}]
    batch = collate(items)
    assert batch["bad"] == [("a", "r")]
    assert batch["x"].tolist() == [1, 2]


# training, from a stream


def positions_after(batches):
    """What a loop remembers of them."""
    return {batch["position"][0]: batch["position"][1:] for batch in batches}


def test_what_is_a_stream():
    assert is_stream(Shards())
    assert not is_stream(Items())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [1, 2, 5, 11])
def test_a_stream_resumes_exactly(workers, first):
    source = Shards(bad={2, 3, 11})
    whole = train(source, (0, 16), workers)
    rest = train(source, (first, 16), workers, positions=positions_after(whole[:first]))
    same(rest, whole[first:])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_resumes_exactly_where_an_epoch_ends(workers):
    source = Shards(length=8)
    whole = train(source, (0, 10), workers)
    for first in range(1, 10):
        same(train(source, (first, 10), workers, positions=positions_after(whole[:first])), whole[first:])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_a_stream_holds_every_sample_once(workers):
    batches = [train(Shards(length=32), (0, 4), workers, rank=rank, world=2) for rank in (0, 1)]
    assert sorted(numbers(batches[0] + batches[1])) == list(range(32))


def test_workers_and_processes_draw_crops_of_their_own():
    class Same(Shards):
        def stream(self, **_):
            pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
            while True:
                yield {"image": pixels, "captions": ["one 1"]}

    crop = TrainTransform(8, scale=(0.2, 0.6))
    batches = [train(Same(), (0, 2), 2, rank=rank, world=2, transform=crop) for rank in (0, 1)]
    images = torch.stack([batch["image"][0] for rank in batches for batch in rank])
    assert len(torch.unique(images.flatten(1), dim=0)) == 4


def test_bad_samples_of_a_stream_are_reported_where_they_lie():
    batches = train(Shards(length=8, bad={1, 6}, shuffled=False), (0, 3))
    assert [batch["bad"] for batch in batches] == [
        [("0/0/0/1", "broken image: 1")],
        [("0/0/0/6", "broken image: 6"), ("0/0/1/1", "broken image: 1")],
        [("0/0/1/6", "broken image: 6")],
    ]
    assert numbers(batches) == [0, 2, 3, 4, 5, 7, 0, 2, 3, 4, 5, 7]


def test_a_bad_sample_at_the_end_of_each_epoch_is_no_error():
    batches = train(Shards(length=5, bad={4}, shuffled=False), (0, 8))
    assert numbers(batches) == [0, 1, 2, 3] * 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_without_usable_samples_is_an_error(workers):
    with pytest.raises(ClipxError, match="found no usable sample") as caught:
        train(Shards(length=4, bad=range(4)), workers=workers)
    assert "more shards" in caught.value.hint
    with pytest.raises(ClipxError, match="1000 samples in a row"):
        train(Shards(length=5000, bad=range(5000)), workers=workers)


def test_more_workers_than_shards_is_an_error():
    with pytest.raises(ClipxError, match="worker 1 of 2 found no usable sample"):
        train(Shards(length=1), workers=2)


def test_a_stream_goes_on_with_as_many_workers_as_it_began(monkeypatch):
    source = Shards()
    whole = train(source, (0, 8), 2)
    positions = positions_after(whole[:5])
    with pytest.raises(ClipxError, match="with 2 loader processes") as caught:
        train(source, (5, 8), 3, positions=positions)
    assert caught.value.hint == "loader.workers=2"
    monkeypatch.setattr("clipx.data.loading.worker_count", lambda requested: 3)  # another machine
    same(train(source, (5, 8), None, positions=positions), whole[5:])


@pytest.mark.parametrize("source", [Items(), Shards()])
def test_loaders_travel_to_spawned_processes(source):
    loader = training_loader(
        source, transform=TrainTransform(8), tokenize=tokenize, batch_size=2, seed=0, steps=(0, 1), workers=0
    )
    pickle.loads(pickle.dumps(loader.dataset))


# evaluation


def evaluate(source, **arguments):
    return list(
        evaluation_loader(
            source, inference_transform({"size": 8}), **{"batch_size": 5, "workers": 0, **arguments}
        )
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "source", [Items(bad={1, 7}), Shards(bad={1, 7}, shuffled=False)], ids=["items", "stream"]
)
def test_every_usable_item_once_in_order(source, workers):
    batches = evaluate(source, workers=workers)
    good = [index for index in range(SIZE) if index not in {1, 7}]
    assert [int(index) for batch in batches for index in batch["index"]] == good
    assert [name for batch in batches for name in batch["id"]] == [f"item-{index}" for index in good]
    assert [int(label) for batch in batches for label in batch["label"]] == [index % 3 for index in good]
    assert [text for batch in batches for text in batch["captions"]] == [
        [f"number {index}"] for index in good
    ]
    assert [report for batch in batches for report in batch["bad"]] == [
        ("1", "broken image: 1"),
        ("7", "broken image: 7"),
    ]
    for batch in batches:
        assert (batch["image"][:, 0, 0, 0] == batch["index"]).all()
        assert len(batch["image"]) + len(batch["bad"]) <= 5


@pytest.mark.parametrize("source", [Items(), Shards(shuffled=False)], ids=["items", "stream"])
def test_a_limit_ends_early(source):
    assert sum(len(batch["index"]) for batch in evaluate(source, limit=7)) == 7
    assert sum(len(batch["index"]) for batch in evaluate(source, limit=99)) == SIZE


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Items, Shards])
def test_a_users_mistake_ends_an_evaluation_as_it_is(kind, workers):
    with pytest.raises(ClipxError) as caught:
        evaluate(kind(error=ClipxError("the disk is gone", hint="mount it")), workers=workers)
    assert (caught.value.message, caught.value.hint) == ("the disk is gone", "mount it")


def test_a_batch_of_bad_samples_alone_is_empty():
    batches = evaluate(Items(bad=range(5)))
    assert len(batches[0]["image"]) == len(batches[0]["label"]) == 0
    assert len(batches[0]["bad"]) == 5


def test_the_number_of_workers(monkeypatch):
    assert worker_count(0) == 0
    assert worker_count(5) == 5
    for cores, expected in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        assert worker_count(None) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert worker_count(None) == 3  # 64 cores, of which four are this process's
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert worker_count(None) == 5


class Three:
    """Pictures with three captions each."""

    name, classes, templates = "three", None, None

    def __len__(self):
        return 6

    def examples(self, indices):
        picture = np.zeros((32, 32, 3), np.uint8)
        return [{"image": picture, "captions": [f"{i} {k}" for k in range(3)]} for i in indices]


def test_captions_in_turn_are_each_seen_once_before_one_comes_again(tmp_path):
    def told(captions, seed=0):
        loader = training_loader(
            Three(),
            transform=TrainTransform(32),
            tokenize=lambda texts: torch.tensor([[int(word) for word in texts[0].split()]]),
            batch_size=6,
            seed=seed,
            steps=(0, 6),
            workers=0,
            captions=captions,
        )
        seen = {}
        for batch in loader:
            for index, place in batch["text"].tolist():
                seen.setdefault(index, []).append(place)
        return seen

    turns = told("turns")
    for places in turns.values():
        assert sorted(places[:3]) == sorted(places[3:]) == [0, 1, 2]
    assert len({tuple(places) for places in turns.values()}) > 1
    assert told("turns") == turns
    assert told("turns", seed=1) != turns
    assert any(sorted(places[:3]) != [0, 1, 2] for places in told("random").values())
    with pytest.raises(ClipxError, match="there is no augment"):
        told("turn")
