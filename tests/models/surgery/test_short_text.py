import copy

import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.models.surgery.short_text import keep_text_layers


def test_the_first_layers_stay_and_a_saved_model_has_no_others(tmp_path):
    torch.manual_seed(0)
    whole = load("tiny-vit")
    torch.manual_seed(0)
    short = load("tiny-vit", text_layers=2)
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in short.model.state_dict().items())
    gone = theirs.keys() - short.model.state_dict().keys()
    assert {name.split(".")[2] for name in gone} == {"2", "3"}
    assert all(name.startswith("transformer.") for name in gone)
    again = load(str(short.save(tmp_path / "short")))
    assert again.model_cfg["text_cfg"]["layers"] == 2
    tokens = short.tokenize(["a red circle"])
    assert torch.equal(again.eval().encode_text(tokens), short.eval().encode_text(tokens))


def test_weights_that_come_with_a_whole_tower_are_cut_too(tmp_path):
    torch.manual_seed(0)
    whole = load("tiny-vit")
    short = load("tiny-vit", str(whole.save(tmp_path / "whole")), text_layers=3)
    cut = copy.deepcopy(whole)
    keep_text_layers(cut.model, 3)
    tokens = whole.tokenize(["a red circle"])
    assert torch.equal(short.eval().encode_text(tokens), cut.eval().encode_text(tokens))
    assert not torch.equal(short.encode_text(tokens), whole.eval().encode_text(tokens))


@pytest.mark.parametrize("layers", [0, 5])
def test_layers_that_are_not_there(layers):
    with pytest.raises(ClipxError, match=f"has 4 layers, {layers} cannot stay"):
        load("tiny-vit", text_layers=layers)


def test_another_tower_is_refused():
    with pytest.raises(ClipxError, match="a Linear, is not open_clip's own"):
        keep_text_layers(nn.ModuleDict({"text": nn.Linear(2, 2)})["text"], 1)
