import copy

import pytest
import torch
import worlds
from torch import nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.neighbours import NEVER, NearestNeighbours, NeighbourQueue, image_to_neighbours
from clipx.training.module import TrainingModule

TEXT = functional.normalize(
    torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64), dim=-1
)


@pytest.fixture
def bank():
    """The bank of the published case: e1, e2, e3, -e1."""
    queue = NeighbourQueue(4, 3).double()
    queue.rows.copy_(torch.cat([torch.eye(3), -torch.eye(3)[:1]]))
    return queue


def test_the_published_case(bank):
    assert bank.nearest(TEXT[:2]).tolist() == [0, 1]
    bank.push(TEXT)
    assert bank.place == 3
    assert torch.equal(bank.rows[:3], TEXT)
    bank.push(TEXT.flip(0))
    assert bank.place == 0
    assert torch.equal(bank.rows, torch.cat([TEXT, TEXT[2:]]))


def test_more_rows_than_the_queue_holds(bank):
    bank.push(torch.cat([TEXT, TEXT]))
    assert torch.equal(bank.rows, torch.cat([TEXT, TEXT[:1]]))
    assert bank.place == 0


def test_ages_are_counted_from_when_rows_came(bank):
    assert bank.ages(torch.tensor([0, 3])).tolist() == [NEVER, NEVER]
    bank.push(TEXT[:2])
    bank.clock += 5
    bank.push(TEXT[:1])
    assert bank.ages(torch.arange(4)).tolist() == [5, 5, 0, NEVER]


def test_it_starts_with_random_directions_and_is_saved():
    queue = NeighbourQueue(50, 8)
    torch.testing.assert_close(queue.rows.norm(dim=-1), torch.ones(50))
    assert queue.rows.mean(0).abs().max() < 0.3
    other = NeighbourQueue(50, 8)
    assert not torch.equal(queue.rows, other.rows)
    queue.push(functional.normalize(torch.ones(3, 8), dim=-1))
    other.load_state_dict(queue.state_dict())
    assert other.place == 3
    assert torch.equal(queue.rows, other.rows)
    with pytest.raises(ClipxError, match="size is 0"):
        NeighbourQueue(0, 8)


def test_images_pick_neighbours_and_are_not_picked():
    generator = torch.Generator().manual_seed(0)
    i1, i2, n1, n2 = functional.normalize(
        torch.randn(4, 3, 5, generator=generator, dtype=torch.float64), dim=-1
    )
    rows = torch.arange(3)
    expected = [functional.cross_entropy(7 * i @ n.T, rows) for i in (i1, i2) for n in (n1, n2)]
    torch.testing.assert_close(image_to_neighbours([i1, i2], [n1, n2], 7.0), sum(expected) / 4)
    given = [each.clone().requires_grad_() for each in (i1, i2)]
    neighbour = n1.clone().requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, s: image_to_neighbours([a, b], [n1, n2], s), (*given, scale))
    image_to_neighbours(given, [neighbour], 7.0).backward()
    assert neighbour.grad is None


def batch_of(clip, words=("red", "blue", "green", "two")):
    generator = torch.Generator().manual_seed(0)
    images = {
        field: torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for field in ("image_view_1", "image_view_2")
    }
    return images | {
        "text_view_1": clip.tokenize([f"a {word}" for word in words]),
        "text_view_2": clip.tokenize([f"the {word} one" for word in words]),
    }


def test_a_batch_looks_before_it_joins(micro):
    clip = copy.deepcopy(micro)
    own = NearestNeighbours(clip, size=20)
    module = TrainingModule(clip, {"nn": own}).train()
    start = own.queue.rows.clone()
    batch = batch_of(clip)
    found = module(batch)
    assert found["nn_known"] == 0
    with torch.no_grad():
        texts = [clip.encode_text(batch[field]) for field in ("text_view_1", "text_view_2")]
        images = [
            clip.encode_image(clip.normalize(batch[field])) for field in ("image_view_1", "image_view_2")
        ]
        nearest = [start[(text @ start.T).argmax(-1)] for text in texts]
        expected = image_to_neighbours(images, nearest, clip.logit_scale)
    torch.testing.assert_close(found["nn"], expected)
    # The second view joins first.
    torch.testing.assert_close(own.queue.rows[:8], torch.cat([texts[1], texts[0]]))
    assert torch.equal(own.queue.rows[8:], start[8:])
    again = module(batch)
    assert again["nn_known"] == 1
    assert again["nn_age"] == 1
    torch.testing.assert_close(again["loss"], again["nn"])  # figures are no part of it


def test_nothing_joins_in_evaluation_and_warming_up_costs_nothing(micro):
    clip = copy.deepcopy(micro)
    own = NearestNeighbours(clip, size=20, warmup=1)
    module = TrainingModule(clip, {"nn": own}).eval()
    module(batch_of(clip))
    assert own.queue.place == own.queue.clock == 0
    module.train()
    assert module(batch_of(clip))["nn"] == 0
    assert module(batch_of(clip))["nn"] > 0


def test_fields_that_are_none_are_named(micro):
    with pytest.raises(ClipxError, match="no such field 'words'"):
        NearestNeighbours(micro, texts=["words"])
    assert isinstance(NearestNeighbours(micro, size=3).queue, nn.Module)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "neighbours")
