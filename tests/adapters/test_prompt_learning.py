"""CoOp's schedule, and what all prompt learners must do alike."""

import math
import warnings

import pytest
import torch
from prompted import NAMES, SCALE, accuracy, clip, fitted, task, zero_shot
from torch.nn import functional

from clipx.adapters import prompt_learning
from clipx.adapters.cocoop import CoCoOp
from clipx.adapters.coop import CoOp
from clipx.adapters.eco import ECO
from clipx.adapters.prompt_learning import named_generator, published_epochs, rate, train
from clipx.adapters.protocol import Adapter, RunsText, Transferable, fit
from clipx.adapters.saving import load, save
from clipx.errors import ClipxError
from clipx.models import prompting

ADAPTERS = {
    "coop": lambda **given: CoOp(**{"n_ctx": 4, "epochs": 3, "batch_size": 8, **given}),
    "coop-words": lambda **given: CoOp(**{"words": "a photo of a", "epochs": 3, "batch_size": 8, **given}),
    "cocoop": lambda **given: CoCoOp(**{"epochs": 2, "batch_size": 8, **given}),
    "eco": lambda **given: ECO(**{"prompts": 2, "n_ctx": 2, "epochs": 3, "batch_size": 8, **given}),
}

pytestmark = pytest.mark.filterwarnings("ignore:trained for")


@pytest.fixture(params=ADAPTERS)
def make(request):
    return ADAPTERS[request.param]


def test_the_rate_is_that_of_the_published_scheduler():
    """Dassl's chained schedulers, played out: a constant first epoch, then a cosine that starts anew."""
    epochs, lr = 7, 2e-3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    rates = [1e-5]
    for epoch in range(1, epochs):
        if epoch > 1:
            optimizer.step()
            cosine.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert [rate(epoch, epochs, lr) for epoch in range(epochs)] == pytest.approx(rates)
    assert rates[-1] > 0


@pytest.mark.parametrize(
    ("shots", "classes", "epochs"),
    [(1, 10, 50), (2, 10, 100), (4, 10, 100), (8, 10, 200), (16, 10, 200), (16, 1000, 50)],
)
def test_published_epochs(shots, classes, epochs):
    assert published_epochs(shots, classes) == epochs


def test_purposes_of_a_seed_draw_apart():
    draws = [torch.rand(1, generator=named_generator(*given)) for given in ((0, "a"), (0, "b"), (1, "a"))]
    assert len({float(draw) for draw in draws}) == 3
    assert draws[0] == torch.rand(1, generator=named_generator(0, "a"))


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(10, 4, [4, 4]), (3, 4, [3]), (8, 4, [4, 4])])
def test_a_last_batch_that_is_not_full_is_left_out(images, batch_size, sizes):
    weight = torch.zeros(1, requires_grad=True)
    support = prompt_learning.Support(
        torch.eye(images), torch.arange(images), torch.eye(images), torch.arange(images), None
    )
    seen, told = [], []

    def loss(rows, labels):
        assert torch.equal(rows.argmax(1), labels)
        seen.append(labels.tolist())
        return weight.sum()

    given = {"epochs": 2, "lr": 0.1, "weight_decay": 0, "batch_size": batch_size, "seed": 0}
    train([weight], loss, support, **given, progress=lambda *step: told.append(step))
    steps = 2 * len(sizes)
    assert told == [("step", done, steps) for done in range(1, steps + 1)]
    assert [len(batch) for batch in seen] == sizes * 2
    half = len(seen) // 2
    first, second = ([label for batch in part for label in batch] for part in (seen[:half], seen[half:]))
    assert len(set(first)) == len(first)
    assert first != second


def test_it_learns(make):
    *_, queries, labels = task()
    conditional = make is ADAPTERS["cocoop"]
    settings = {"epochs": 8, "batch_size": 2} if conditional else {"epochs": 15, "batch_size": 6}
    before, after = (fitted(make(**{**settings, **own})).logits(queries) for own in ({"epochs": 0}, {}))
    zero = SCALE * queries @ zero_shot(NAMES).T
    untrained, trained, plain = (
        float(functional.cross_entropy(logits, labels)) for logits in (before, after, zero)
    )
    assert trained < min(untrained, plain) - 0.1
    if not conditional:
        assert accuracy(after, labels) > accuracy(zero, labels)


def test_it_keeps_the_contract(make):
    assert all(isinstance(make(), kind) for kind in (Adapter, RunsText, Transferable))
    features, labels, text, queries, _ = task()
    extras = {"clip": clip(), "class_names": NAMES, "templates": ["a {}"], "norms": None, "seed": 3}
    adapter = fit(make(), features, labels, text, logit_scale=SCALE, **extras)
    logits = adapter.logits(queries)
    assert logits.shape == (len(queries), len(NAMES))
    assert logits.dtype == torch.float64
    assert adapter.logits(queries[:0]).shape == (0, len(NAMES))
    torch.testing.assert_close(torch.cat([adapter.logits(part) for part in queries.split(7)]), logits)
    # Neither the zero-shot classifier nor the validation images say anything that is learned.
    chosen = (queries, labels[:1].expand(len(queries)))
    again = fit(make(), features, labels, text.flip(0), logit_scale=SCALE, validation=chosen, **extras)
    assert torch.equal(again.logits(queries), logits)


def test_saved_and_read_it_gives_the_same(make, tmp_path):
    *_, queries, _ = task()
    adapter = fitted(make())
    save(adapter, tmp_path / "a")
    again = load(tmp_path / "a")
    with pytest.raises(ClipxError, match="has no model"):
        again.logits(queries)
    again.attach(clip())
    assert torch.equal(again.logits(queries), adapter.logits(queries))


def test_it_serves_new_classes(make):
    *_, queries, _ = task()
    adapter = fitted(make())
    before = adapter.logits(queries)
    names = ["green star", *reversed(NAMES), "violet"]
    other = adapter.for_classes(zero_shot(names), class_names=names)
    logits = other.logits(queries)
    torch.testing.assert_close(logits[:, 1:-1].flip(1), before, rtol=1e-9, atol=1e-9)
    assert torch.equal(adapter.logits(queries), before)
    assert adapter.class_names_ == NAMES
    elsewhere = adapter.for_classes(zero_shot(names), class_names=names, clip=clip())
    assert torch.equal(elsewhere.logits(queries), logits)
    with pytest.raises(ClipxError, match="2 class names for 11 classes"):
        adapter.for_classes(zero_shot(names), class_names=names[:2])
    with pytest.raises(ClipxError, match="not fitted"):
        make().for_classes(zero_shot(names), class_names=names)


def test_the_model_stays_as_it_is(make):
    clip().train().zero_grad()
    before = clip().fingerprint()
    fitted(make()).logits(task()[3])
    assert clip().training
    assert all(weight.requires_grad and weight.grad is None for weight in clip().parameters())
    assert clip().fingerprint() == before
    clip().eval()


def test_the_seed_says_all(make):
    first, second, other = (fitted(make(seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first.context_, second.context_)
    assert not torch.equal(first.context_, other.context_)


def test_memory_is_bounded_and_nothing_changes(make):
    whole, parts = fitted(make()), fitted(make(chunk=5))
    torch.testing.assert_close(parts.context_, whole.context_, rtol=1e-8, atol=1e-10)
    queries = task()[3][::9]
    torch.testing.assert_close(parts.logits(queries), whole.logits(queries), rtol=1e-8, atol=1e-8)


def test_no_prompt_is_encoded_twice_in_a_step(monkeypatch):
    encoded = []

    def counted(tower, prefix, suffix, tokens, own=prompting.encode_shared):
        encoded.append(suffix.shape[0] * suffix.shape[1])
        return own(tower, prefix, suffix, tokens)

    monkeypatch.setattr(prompting, "encode_shared", counted)
    steps = len(NAMES) * 2 // 8
    for name, prompts in (("coop", 1), ("eco", 2), ("cocoop", 8)):
        encoded.clear()
        adapter = fitted(ADAPTERS[name](epochs=1))
        assert encoded == [prompts * len(NAMES)] * steps, name
        encoded.clear()
        for _ in range(2):
            adapter.logits(task()[3])
        # CoCoOp has a classifier an image; the others have one.
        assert sum(encoded) == len(NAMES) * (2 * len(task()[3]) if name == "cocoop" else prompts), name


def test_each_epoch_takes_the_next_view(make):
    features, labels, _, _, _ = task()
    groups, labels = torch.arange(18) // 2, labels[::2]
    views = {"features": features, "labels": labels.repeat_interleave(2), "groups": groups}
    firsts = {"features": features[::2], "labels": labels}
    one, first = (fitted(make(epochs=1, batch_size=3), **given) for given in (views, firsts))
    assert torch.equal(one.context_, first.context_)
    two, again = (fitted(make(epochs=2, batch_size=3), **given) for given in (views, firsts))
    assert not torch.allclose(two.context_, again.context_, rtol=1e-9, atol=0)


@pytest.fixture
def epochs_taken(monkeypatch):
    """Epochs that the adapters ask for; none is trained."""
    seen = []
    for module in ("coop", "cocoop", "eco"):
        monkeypatch.setattr(f"clipx.adapters.{module}.train", lambda *_, epochs, **__: seen.append(epochs))
    return seen


def test_fewer_epochs_than_published_are_said(make, epochs_taken):
    published = 10 if make is ADAPTERS["cocoop"] else 100
    with pytest.warns(UserWarning, match=f"trained for 1 epochs of the {published} that the paper takes"):
        fitted(make(epochs=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epochs in (published, None, published + 1):
            fitted(make(epochs=epochs))
    assert epochs_taken == [1, published, published, published + 1]


NAN = torch.full((1, 128), math.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": 2 * task()[0]}, "row 0 has length 2"),
        ({"features": torch.cat([task()[0][:-1], NAN])}, "row 17 holds NaN"),
        ({"features": task()[0][:, :-1]}, "127 dimensions"),
        ({"labels": task()[1] + 1}, "outside the 9 classes"),
        ({"labels": task()[1][:-1]}, "18 rows of features have 17 labels"),
        ({"class_names": NAMES[:-1]}, "8 class names for 9 classes"),
        ({"class_names": [*NAMES[:-1], "red " * 40]}, "takes .* tokens with"),
        ({"class_names": [*NAMES[:-1], " "]}, "class 8 has a blank name"),
        ({"text_classifier": zero_shot(NAMES)[:1], "class_names": NAMES[:1]}, "nothing to tell apart"),
        ({"logit_scale": math.inf}, "logit_scale is inf"),
        ({"validation": (NAN, torch.tensor([0]))}, "validation features: row 0 holds NaN"),
    ],
)
def test_bad_input_is_named(make, given, message):
    with pytest.raises(ClipxError, match=message):
        fitted(make(epochs=1), **given)


def test_bad_queries_are_named(make):
    adapter = fitted(make(epochs=0))
    for rows, message in ((NAN, "row 0 holds NaN"), (2 * task()[3], "length 2"), (task()[3][:, 1:], "127")):
        with pytest.raises(ClipxError, match=message):
            adapter.logits(rows)
    with pytest.raises(ClipxError, match="not fitted"):
        make().logits(task()[3])


def test_divergence_is_said(make):
    with pytest.raises(ClipxError, match="training diverged"):
        fitted(make(epochs=4, lr=1e300))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"lr": 0}, "lr is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"n_ctx": 0}, "n_ctx is 0"),
    ],
)
def test_settings_out_of_range_are_named(make, given, message):
    with pytest.raises(ClipxError, match=message):
        make(**given)
