import json

import pytest
import torch
from bench import drawn
from safetensors.torch import save_file

from clipx.adapters.clap import CLAPHead
from clipx.adapters.clip_adapter import CLIPAdapter
from clipx.adapters.gda import GDA
from clipx.adapters.gda_em import GaussianEM
from clipx.adapters.linear_probe import LinearProbe, LPpp
from clipx.adapters.local_regression import LocalLinear, NadarayaWatson
from clipx.adapters.proker import ProKeR
from clipx.adapters.proker_clap import ProKeRCLAP
from clipx.adapters.prolip import RLA
from clipx.adapters.protocol import arguments
from clipx.adapters.saving import _plain, load, save
from clipx.adapters.tip_adapter import TipAdapter, TipAdapterF
from clipx.adapters.zero_shot import ZeroShot
from clipx.errors import ClipxError


class Mine(TipAdapter):
    pass


def fitted(adapter):
    features, labels, text, queries = drawn()
    return adapter.fit(features, labels, text, logit_scale=100), queries


@pytest.mark.parametrize(
    "adapter",
    [
        ZeroShot(),
        TipAdapter(alpha=2.0),
        TipAdapterF(alpha=2.0, epochs=1),
        GDA(alpha=2.0, alphas=(1, 2)),
        GaussianEM(alpha=2.0),
        NadarayaWatson(),
        LocalLinear(views="average"),
        ProKeR(),
        ProKeR(random_features=50, seed=3),
        ProKeRCLAP(steps=2),
        CLAPHead(steps=2),
        CLIPAdapter(side="both", epochs=2),
        LinearProbe(),
        LPpp(epochs=3),
        RLA(lam=0.1, steps=2),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_what_is_read_answers_as_what_was_saved(adapter, tmp_path):
    adapter, queries = fitted(adapter)
    save(adapter, tmp_path / "deep" / "adapter.safetensors")
    again = load(tmp_path / "deep" / "adapter.safetensors")
    assert type(again) is type(adapter)
    torch.testing.assert_close(again.logits(queries), adapter.logits(queries))
    assert _plain(arguments(again)) == _plain(arguments(adapter))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["adapter.safetensors"]


@pytest.mark.parametrize(
    "adapter",
    [ZeroShot(), TipAdapter(), GDA(alpha=2.0), ProKeR(), CLIPAdapter(epochs=2), RLA(lam=0.1, steps=2)],
    ids=lambda adapter: type(adapter).__name__,
)
def test_what_is_read_answers_for_other_classes_too(adapter, tmp_path):
    adapter, queries = fitted(adapter)
    save(adapter, tmp_path / "adapter.safetensors")
    _, _, text, _ = drawn()
    others = text.roll(1, 0)[:2]
    expected = adapter.for_classes(others).logits(queries)
    assert expected.shape == (len(queries), 2)
    again = load(tmp_path / "adapter.safetensors").for_classes(others)
    torch.testing.assert_close(again.logits(queries), expected)


def test_only_what_is_fitted_can_be_saved(tmp_path):
    with pytest.raises(ClipxError, match="not fitted"):
        save(TipAdapter(), tmp_path / "a")


def test_a_class_from_elsewhere_is_not_constructed(tmp_path):
    adapter, queries = fitted(Mine())
    save(adapter, tmp_path / "a")
    with pytest.raises(ClipxError, match=r"outside clipx\.adapters"):
        load(tmp_path / "a")
    assert torch.equal(load(tmp_path / "a", modules=[__name__]).logits(queries), adapter.logits(queries))


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"clipx_adapter": "{"},
        {"clipx_adapter": "[]"},
        {
            "clipx_adapter": json.dumps(
                {"class": "clipx.adapters.no_such.Thing", "arguments": {}, "values": {}}
            )
        },
        {
            "clipx_adapter": json.dumps(
                {"class": "clipx.adapters.tip_adapter.TipAdapter", "arguments": {"gone": 1}, "values": {}}
            )
        },
    ],
)
def test_what_is_no_adapter_is_named(header, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "a", metadata=header)
    with pytest.raises(ClipxError, match=r"not an adapter|another version"):
        load(tmp_path / "a")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").write_text("nothing of the kind")
    for name in ("a", "missing"):
        with pytest.raises(ClipxError, match="cannot read an adapter"):
            load(tmp_path / name)
