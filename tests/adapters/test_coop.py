import pytest
import torch
from prompted import (
    NAMES,
    SCALE,
    accuracy,
    clip,
    encoded_as_published,
    fitted,
    published_steps,
    task,
    zero_shot,
)
from torch.nn import functional

from clipx.adapters.coop import CoOp
from clipx.adapters.prompt_learning import named_generator
from clipx.adapters.saving import load, save
from clipx.errors import ClipxError
from clipx.models.prompting import POSITIONS, random_vectors, word_vectors

pytestmark = pytest.mark.filterwarnings("ignore:trained for")


def test_the_words_of_a_template_are_zero_shot():
    *_, queries, _ = task()
    adapter = fitted(CoOp(words="a photo of a", epochs=0))
    torch.testing.assert_close(adapter.text_classifier(), zero_shot(NAMES), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        adapter.logits(queries), SCALE * queries @ zero_shot(NAMES).T, rtol=0, atol=1e-9
    )
    assert adapter.context_.shape == (1, 1, 4, 96)
    assert adapter.nearest_words_ == "a photo of a"


def test_training_is_the_published_loop():
    features, labels, _, _, _ = task()
    adapter = fitted(CoOp(n_ctx=4, epochs=3, batch_size=8, seed=2))
    start = random_vectors(clip(), 4, generator=named_generator(2, "context"))
    vectors = start[0, 0].clone().requires_grad_()
    momentum = torch.zeros_like(vectors)
    for rate, rows in published_steps(len(labels), 3, 8, 2):
        text = encoded_as_published(vectors, NAMES)
        loss = functional.cross_entropy(SCALE * features[rows] @ text.T, labels[rows])
        (gradient,) = torch.autograd.grad(loss, vectors)
        with torch.no_grad():
            momentum = 0.9 * momentum + gradient + 5e-4 * vectors
            vectors -= rate * momentum
    assert float((adapter.context_ - start).abs().max()) > 1e-3
    torch.testing.assert_close(adapter.context_[0, 0], vectors.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("class_specific", [False, True])
def test_every_form_learns_is_saved_and_read(position, class_specific, tmp_path):
    *_, queries, labels = task()
    adapter = fitted(CoOp(4, None, class_specific, position, epochs=12, batch_size=8))
    assert adapter.context_.shape == (1, 9 if class_specific else 1, 4, 96)
    zero = accuracy(SCALE * queries @ zero_shot(NAMES).T, labels)
    assert accuracy(adapter.logits(queries), labels) > zero + 0.1
    save(adapter, tmp_path / "a")
    again = load(tmp_path / "a")
    again.attach(clip())
    assert torch.equal(again.logits(queries), adapter.logits(queries))


def test_class_specific_vectors_start_alike_from_words_and_go_apart():
    start = fitted(CoOp(words="a photo of a", class_specific=True, epochs=0)).context_
    assert torch.equal(start, word_vectors(clip(), "a photo of a").repeat(1, 9, 1, 1))
    moved = fitted(CoOp(words="a photo of a", class_specific=True, epochs=3, batch_size=8)).context_
    assert not torch.equal(moved[0, 0], moved[0, 1])


def test_class_specific_vectors_serve_no_other_classes():
    adapter = fitted(CoOp(4, class_specific=True, epochs=0))
    with pytest.raises(ClipxError, match="class-specific contexts know nothing of other classes") as caught:
        adapter.for_classes(zero_shot(["red star", "red"]), class_names=["red star", "red"])
    assert "class_specific=false" in caught.value.hint
    features, labels, _, _, _ = task()
    with pytest.raises(ClipxError, match="class 8 has no shot"):
        fitted(CoOp(4, class_specific=True, epochs=0), features=features[:-2], labels=labels[:-2])
    fitted(CoOp(4, epochs=1, batch_size=8), features=features[:-2], labels=labels[:-2])


def test_an_unknown_position_is_named():
    with pytest.raises(ClipxError, match="unknown position 'ende'") as caught:
        CoOp(position="ende")
    assert "end" in caught.value.hint


def test_base_classes_are_learned_and_new_ones_are_not():
    """What the paper of CoCoOp found: the context fits the classes it was shown."""
    features, labels, text, queries, truth = task()
    base, new = list(range(6)), list(range(6, 9))
    shown, asked = labels < 6, truth >= 6
    adapter = CoOp(4, epochs=25, batch_size=8).fit(
        features[shown],
        labels[shown],
        text[base],
        logit_scale=SCALE,
        clip=clip(),
        class_names=[NAMES[place] for place in base],
    )
    gain = accuracy(adapter.logits(queries[~asked]), truth[~asked]) - accuracy(
        queries[~asked] @ text[base].T, truth[~asked]
    )
    other = adapter.for_classes(text[new], class_names=[NAMES[place] for place in new])
    new_gain = accuracy(other.logits(queries[asked]), truth[asked] - 6) - accuracy(
        queries[asked] @ text[new].T, truth[asked] - 6
    )
    assert gain > 0.1
    assert new_gain < gain
