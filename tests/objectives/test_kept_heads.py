import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.heads import mlp
from clipx.objectives.kept_heads import HEADS_FILE, KeptHeads, heads_file, load_heads, save_heads
from clipx.objectives.projected_views import ProjectedViews


def heads_of(seed, widths=(6, 5, 4)):
    torch.manual_seed(seed)
    image, text = mlp(widths), mlp(widths)
    for head in (image, text):
        head(3 * torch.randn(20, widths[0]))  # statistics of their own
    return KeptHeads(image.eval(), text.eval(), widths, 10.0 + seed)


def test_heads_of_several_objectives_come_back_as_they_were(tmp_path):
    heads = {"one": heads_of(1), "two": heads_of(2, (6, 3))}
    path = save_heads(tmp_path, heads)
    assert path == tmp_path / HEADS_FILE
    rows = torch.randn(7, 6)
    found = load_heads(path)
    assert found.keys() == heads.keys()
    for name, each in found.items():
        assert torch.equal(each.image(rows), heads[name].image(rows))
        assert torch.equal(each.text(rows), heads[name].text(rows))
        assert (list(each.widths), each.logit_scale) == (list(heads[name].widths), heads[name].logit_scale)
        assert not each.image.training


def test_they_are_found_in_a_run_and_in_its_model(tmp_path):
    assert heads_file(str(tmp_path)) is None
    assert heads_file("ViT-B-32") is None
    (tmp_path / "model").mkdir()
    path = save_heads(tmp_path / "model", {"one": heads_of(1)})
    for name in (str(tmp_path), str(tmp_path / "model"), f"local-dir:{tmp_path}/model"):
        assert heads_file(name) == path


def test_what_is_no_file_of_heads_is_named(tmp_path):
    path = tmp_path / HEADS_FILE
    for content in (b"", b"no safetensors"):
        path.write_bytes(content)
        with pytest.raises(ClipxError, match=f"cannot read heads from {path}"):
            load_heads(path)
    for metadata in (None, {"clipx_heads": "[1]"}, {"clipx_heads": '{"one": {"widths": [2, 2]}}'}):
        save_file({"one.image.0.weight": torch.ones(2, 2)}, path, metadata=metadata)
        with pytest.raises(ClipxError, match="does not hold heads"):
            load_heads(path)


def test_an_objective_keeps_its_heads_and_their_scale(micro, tmp_path):
    own = ProjectedViews(micro, hidden=8, width=4, init_scale=7.0).eval()
    rows = torch.randn(5, 32)
    kept = own.kept
    assert torch.equal(functional.normalize(kept.image(rows)), functional.normalize(own.image_head(rows)))
    assert kept.widths == (32, 8, 8, 4)
    assert kept.logit_scale == pytest.approx(7.0)
    with torch.no_grad():
        own.log_scale.fill_(9.0)
    assert own.kept.logit_scale == pytest.approx(100.0)
