import pytest
import torch
from bench import accuracies, drawn, mean_accuracy
from torch.nn import functional

from clipx.adapters.clip_adapter import CLIPAdapter, blend, bottleneck
from clipx.adapters.search import hits
from clipx.adapters.training import Task, fit_many
from clipx.adapters.zero_shot import ZeroShot
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError


def test_the_published_case():
    v = torch.tensor([[1, -1, 2, 0.5]]).double()
    down, up = torch.tensor([[1, 0, 1, 0]]).double(), torch.tensor([[0.5, -1, 0.25, 1]]).double().T
    adapted = bottleneck(v, down, up)
    assert adapted[0].tolist() == [1.5, 0, 0.75, 3]
    assert blend(v, adapted, 0.2, post_norm=False)[0].tolist() == pytest.approx((1.1, -0.8, 1.75, 1.0))
    expected = (0.452384, -0.329006, 0.719702, 0.411258)
    assert blend(v, adapted, 0.2)[0].tolist() == pytest.approx(expected, abs=5e-7)
    # Unit rows give the same: without a bias, the length passes through.
    unit = functional.normalize(v, dim=-1)
    torch.testing.assert_close(blend(unit, bottleneck(unit, down, up), 0.2), blend(v, adapted, 0.2))


@pytest.mark.parametrize("side", ["image", "text", "both"])
def test_weight_zero_is_zero_shot_bit_for_bit(side):
    features, labels, text, queries = drawn(dtype=torch.float32)
    ours, theirs = (
        adapter.fit(features, labels, text, logit_scale=100).logits(queries)
        for adapter in (CLIPAdapter(0.0, 0.0, side=side, epochs=2), ZeroShot())
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("shots", "expected", "above"), [(1, 47.3, 1), (4, 53.1, 4), (16, 59.7, 10)])
def test_featurebench(shots, expected, above):
    figures = accuracies(CLIPAdapter, shots)
    mean = sum(figures) / 3
    assert mean == pytest.approx(expected, abs=3)
    assert mean >= mean_accuracy(ZeroShot, shots) + above
    assert float(torch.tensor(figures).std()) < 3


@pytest.mark.parametrize("given", [{"side": "text"}, {"side": "both"}, {"optimizer": "adam", "lr": 1e-3}])
def test_other_forms_learn_too(given):
    given = {"epochs": 60, "schedule": "cosine", **given}
    assert accuracies(lambda: CLIPAdapter(**given), 4, seeds=(1,))[0] > accuracies(ZeroShot, 4, seeds=(1,))[0]


@pytest.mark.parametrize("given", [{}, {"search": True}, {"side": "both", "batch_size": 7}])
def test_tasks_trained_at_once_are_tasks_trained_alone(given):
    tasks = []
    for seed in (1, 2, 3):
        bench = featurebench(shots=1, seed=seed, views=2)
        validation = (bench.validation[0].double(), bench.validation[1])
        tasks.append(Task(bench.train[0].double(), bench.train[1], bench.text_classifier.double(), 100.0))
        tasks[-1] = tasks[-1]._replace(validation=validation, groups=bench.groups)
    adapter = CLIPAdapter(epochs=5, **given)
    queries = featurebench(shots=1, seed=1).test[0].double()
    for together, task in zip(fit_many(adapter, tasks), tasks, strict=True):
        (alone,) = fit_many(adapter, [task])
        assert together.image_weight_ == alone.image_weight_
        torch.testing.assert_close(together.logits(queries), alone.logits(queries))


def test_the_searched_weight_is_no_worse_on_validation():
    bench = featurebench(shots=16, seed=1)
    given, search = (
        CLIPAdapter(epochs=50, search=search).fit(
            *bench.train, bench.text_classifier, logit_scale=100, validation=bench.validation
        )
        for search in (False, True)
    )
    rows, truth = bench.validation
    assert search.image_weight_ in [step / 10 for step in range(1, 11)]
    assert int(hits(search.logits(rows), truth)) >= int(hits(given.logits(rows), truth))


def test_each_epoch_takes_the_next_view():
    features, labels, text, queries = drawn(shots=2)
    groups = torch.arange(10) // 2
    adapter = CLIPAdapter(epochs=1).fit(features, labels, text, logit_scale=10, groups=groups)
    first = CLIPAdapter(epochs=1).fit(features[::2], labels[::2], text, logit_scale=10)
    torch.testing.assert_close(adapter.logits(queries), first.logits(queries))
    two = CLIPAdapter(epochs=2).fit(features, labels, text, logit_scale=10, groups=groups)
    again = CLIPAdapter(epochs=2).fit(features[::2], labels[::2], text, logit_scale=10)
    assert not torch.allclose(two.logits(queries), again.logits(queries))


def test_neither_the_order_of_rows_nor_the_batch_matters():
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    adapter = CLIPAdapter(epochs=20)
    expected = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = adapter.fit(features[order], labels[order], text, logit_scale=100)
    torch.testing.assert_close(torch.cat([shuffled.logits(part) for part in queries.split(7)]), expected)


def test_new_classes_pass_the_same_bottleneck():
    features, labels, text, queries = drawn()
    adapter = CLIPAdapter(epochs=3).fit(features, labels, text, logit_scale=100)
    torch.testing.assert_close(
        adapter.for_classes(text[1:3]).logits(queries), adapter.logits(queries)[:, 1:3]
    )
    assert adapter.text_classifier_.shape == text.shape


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapter_weight": 1.1}, "adapter_weight is 1.1"),
        ({"reduction": 0}, "reduction is 0"),
        ({"side": "images"}, "unknown side"),
        ({"optimizer": "lion"}, "unknown optimizer"),
        ({"schedule": "step"}, "unknown schedule"),
        ({"lr": 0}, "lr is 0"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        CLIPAdapter(**given)
