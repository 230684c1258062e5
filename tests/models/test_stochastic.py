import copy

import pytest
import torch

from clipx.models.stochastic import blocks_of, dropping, leave_out


@pytest.fixture
def clip(micro):
    return copy.deepcopy(micro).train()


def test_a_share_is_left_out_and_the_rest_makes_up_for_it():
    torch.manual_seed(0)
    rows = leave_out(torch.ones(4000, 2, 3), 0.25)
    assert sorted(set(rows.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert (rows[:, :1, :1] == rows).all()  # a row as a whole
    assert rows.mean().item() == pytest.approx(1, abs=0.03)


def test_without_branches_the_stream_is_all_that_is_left(clip):
    tokens = clip.tokenize(["a circle", "a square"])
    (block,) = blocks_of(clip)
    seen = []
    block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    with dropping([block], 0.0, 1 - 1e-6):
        clip.encode_text(tokens)
    ((entered, left),) = seen
    assert torch.equal(entered, left)


def test_dropout_changes_what_enters_and_so_the_stream(clip):
    tokens = clip.tokenize(["a circle"] * 200)
    (block,) = blocks_of(clip)
    seen = []
    block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    whole = clip.encode_text(tokens)
    torch.manual_seed(0)
    with dropping([block], 0.3, 0.0):
        dropped = clip.encode_text(tokens)
    assert (seen[1] == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], seen[0][kept] / 0.7)
    assert (dropped - whole).abs().max() > 1e-3
    assert torch.equal(clip.encode_text(tokens), whole)


def test_hooks_go_also_after_an_error(clip):
    tokens = clip.tokenize(["a circle"])
    whole = clip.encode_text(tokens)
    with pytest.raises(KeyError), dropping(blocks_of(clip), 0.5, 0.5):
        raise KeyError
    assert torch.equal(clip.encode_text(tokens), whole)
