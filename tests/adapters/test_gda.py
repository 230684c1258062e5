import pytest
import torch
from bench import LABELS, QUERY, SHOTS, TEXT, drawn, mean_accuracy

from clipx.adapters.gda import GDA, apply_precision, class_means
from clipx.adapters.gda_em import GaussianEM
from clipx.adapters.saving import load, save
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits
from clipx.data.featurebench import featurebench
from clipx.errors import ClipxError


def test_the_published_case():
    means = torch.stack([SHOTS[:2].mean(0), SHOTS[2:].mean(0)])
    assert float((SHOTS - means[LABELS]).T.cov().trace()) == pytest.approx(0.03206294, abs=5e-9)
    assert torch.equal(class_means(SHOTS, LABELS, torch.tensor([2, 2])), means)
    adapter = GDA(alpha=1).fit(SHOTS, LABELS, TEXT, logit_scale=100)
    expected = ((65.435304, 10.453648, 30.151747), (15.863864, 81.958987, 22.003540))
    for row, wanted in zip(adapter.weight_.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=5e-7)
    assert adapter.bias_.tolist() == pytest.approx((-34.759981, -42.739295), abs=5e-7)
    assert adapter.logits(QUERY)[0].tolist() == pytest.approx((109.432152, 94.634438), abs=5e-7)


def test_the_precision_is_the_pseudo_inverse_of_the_code():
    features, labels, _, queries = drawn()
    deviations = features - torch.stack([features[labels == c].mean(0) for c in range(5)])[labels]
    covariance = deviations.T.cov()
    d, n = features.shape[1], len(features)
    ridge = covariance.trace() * torch.eye(d).double()
    expected = queries @ (d * torch.linalg.pinv((n - 1) * covariance + ridge))
    torch.testing.assert_close(apply_precision("ks", deviations, 5, queries), expected)


def test_pinv_is_the_mean_of_the_classes_covariances():
    features, labels, _, queries = drawn(shots=9)
    means = torch.stack([features[labels == c].mean(0) for c in range(5)])
    mean = torch.stack([features[labels == c].T.cov() for c in range(5)]).mean(0)
    found = apply_precision("pinv", features - means[labels], 5, queries)
    torch.testing.assert_close(found, queries @ torch.linalg.pinv(mean))


@pytest.mark.parametrize(("shots", "expected"), [(1, 44.6), (4, 50.4), (8, 69.4), (16, 83.6)])
@pytest.mark.filterwarnings("ignore:one row a class")
def test_featurebench(shots, expected):
    assert mean_accuracy(GDA, shots) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("precision", ["oas", "ledoit", "pinv"])
def test_other_precisions_win_at_many_shots_too(precision):
    assert mean_accuracy(lambda: GDA(precision=precision), 16) > 80


def test_one_row_a_class_is_zero_shot_and_said_so():
    bench = featurebench(shots=1, seed=1)
    with pytest.warns(UserWarning, match="gda is zero-shot here"):
        adapter = GDA().fit(*bench.train, bench.text_classifier, logit_scale=100)
    zero_shot = zero_shot_logits(bench.test[0], bench.text_classifier, 100)
    assert torch.equal(adapter.logits(bench.test[0]).argmax(1), zero_shot.argmax(1))


def test_views_of_one_shot_do_little_harm():
    assert mean_accuracy(GDA, 1, views=10) >= mean_accuracy(ZeroShot, 1) - 1


@pytest.mark.parametrize("adapter", [GDA(alpha=0), GaussianEM(alpha=0)])
def test_alpha_zero_is_zero_shot_bit_for_bit(adapter):
    features, labels, text, queries = drawn(dtype=torch.float32)
    ours = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    assert torch.equal(ours, ZeroShot().fit(features, labels, text, logit_scale=100).logits(queries))


@pytest.mark.parametrize("precision", ["ks", "oas"])
def test_neither_the_order_of_rows_nor_the_batch_matters(precision):
    features, labels, text, queries = drawn()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    adapter = GDA(precision=precision)
    expected = adapter.fit(features, labels, text, logit_scale=100).logits(queries)
    shuffled = adapter.fit(features[order], labels[order], text, logit_scale=100)
    torch.testing.assert_close(torch.cat([shuffled.logits(part) for part in queries.split(7)]), expected)


def test_an_empirical_prior_favours_the_frequent_class():
    features, labels, text, _ = drawn()
    kept = torch.cat([torch.arange(4), torch.arange(4, 20, 2)])
    uniform, empirical = (
        GDA(alpha=1, prior=prior).fit(features[kept], labels[kept], text, logit_scale=100).bias_
        for prior in ("uniform", "empirical")
    )
    difference = empirical - uniform
    torch.testing.assert_close(difference[0] - difference[1], torch.tensor(2.0).double().log())


def test_new_classes_have_their_neighbours_for_images(tmp_path):
    bench = featurebench(shots=16, seed=1)
    base = bench.train[1] < 10
    adapter = GDA().fit(
        bench.train[0][base], bench.train[1][base], bench.text_classifier[:10], logit_scale=100
    )
    rows = bench.test[0][bench.test[1] >= 10]
    truth = bench.test[1][bench.test[1] >= 10] - 10
    new = adapter.for_classes(bench.text_classifier[10:])
    ours = float((new.logits(rows).argmax(1) == truth).float().mean())
    theirs = float(((rows @ bench.text_classifier[10:].T).argmax(1) == truth).float().mean())
    assert ours >= theirs - 0.05
    save(adapter, tmp_path / "a")
    assert torch.equal(load(tmp_path / "a").logits(rows), adapter.logits(rows))
    again = load(tmp_path / "a").for_classes(bench.text_classifier[10:])
    assert torch.equal(again.logits(rows), new.logits(rows))
    assert torch.equal(again.for_classes(bench.text_classifier[10:]).logits(rows), new.logits(rows))


def test_a_file_without_base_features_says_what_to_do(tmp_path):
    features, labels, text, queries = drawn()
    adapter = GDA().fit(features, labels, text, logit_scale=100)
    expected = adapter.logits(queries)
    del adapter.base_
    save(adapter, tmp_path / "old")
    old = load(tmp_path / "old")
    assert torch.equal(old.logits(queries), expected)
    with pytest.raises(ClipxError, match="base features") as caught:
        old.for_classes(text)
    assert caught.value.hint == "fit it again"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_labels_it_finds_classes_that_lie_apart(seed):
    bench = featurebench("clustered", shots=1, seed=seed)
    rows, truth = bench.test
    adapter = GaussianEM().fit(rows, torch.zeros_like(truth), bench.text_classifier, logit_scale=100)
    ours = float((adapter.logits(rows).argmax(1) == truth).float().mean())
    theirs = float(((rows @ bench.text_classifier.T).argmax(1) == truth).float().mean())
    assert ours >= theirs + 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1}, "alpha is -1"),
        ({"alphas": []}, "alphas is empty"),
        ({"precision": "kss"}, "did you mean 'ks'|unknown precision"),
        ({"prior": "flat"}, "unknown prior"),
        ({"neighbours": 1}, "neighbours is 1"),
    ],
)
def test_settings_out_of_range_are_named(given, message):
    with pytest.raises(ClipxError, match=message):
        GDA(**given)


def test_a_class_without_a_shot_is_named():
    features, labels, text, _ = drawn()
    with pytest.raises(ClipxError, match="class 2 has no shot"):
        GDA().fit(features[labels != 2], labels[labels != 2], text, logit_scale=100)
