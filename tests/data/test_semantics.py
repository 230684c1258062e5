import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from clipx.data.semantics import HashedWords, SentenceEncoder
from clipx.errors import ClipxError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "star"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a sentence encoder of random weights."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **size)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "captions"


def test_captions_are_as_near_as_the_words_they_share():
    rows = HashedWords()(["a red circle", "The red star.", "a blue star", "RED CIRCLE, and a red circle"])
    cosines = rows @ rows.T
    # Of two words each, one is common to neighbours; the last says the first twice.
    expected = torch.tensor([[1, 0.5, 0, 1], [0.5, 1, 0.5, 0.5], [0, 0.5, 1, 0], [1, 0.5, 0, 1]])
    torch.testing.assert_close(cosines, expected)
    assert rows.dtype == torch.float32


def test_captions_without_words_are_themselves():
    rows = HashedWords()(["the", "a", "?!", "...", "the"])
    cosines = rows @ rows.T
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert cosines[0].tolist() == pytest.approx([1, 0, 0, 0, 1])
    assert cosines[2, 3] == 0


def test_words_have_the_same_place_in_every_process():
    words = "zebra giraffe lion crow heron adder"
    rows = f"HashedWords(64)(['{words}']).nonzero()[:, 1].tolist()"
    code = f"from clipx.data.semantics import HashedWords; print({rows})"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == HashedWords(64)([words]).nonzero()[:, 1].tolist()


def test_a_sentence_encoder_averages_the_states_of_the_tokens_and_not_of_the_padding(encoder):
    from transformers import AutoModel, AutoTokenizer

    embed = SentenceEncoder(encoder)
    both = embed(["a red circle", "star"])
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(encoder)(["star"], return_tensors="pt")
        states = AutoModel.from_pretrained(encoder).eval()(**tokens).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0)
    torch.testing.assert_close(both[1], expected, atol=1e-6, rtol=0)


def test_what_was_embedded_is_remembered(encoder, cache, monkeypatch):
    first = SentenceEncoder(encoder)(["a red circle", "star"])
    assert len(list(cache.glob("*.sqlite"))) == 1
    again = SentenceEncoder(encoder)
    monkeypatch.setattr(again, "embed", None)
    assert torch.equal(again(["star", "a red circle"]), first.flip(0))
    assert pickle.loads(pickle.dumps(SentenceEncoder(encoder)))(["star"]).tolist() == first[1:].tolist()


def test_other_weights_remember_other_vectors(encoder, cache, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    first = SentenceEncoder(encoder)(["star"])
    model = AutoModel.from_pretrained(encoder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(torch.randn(len(WORDS), 16))
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "other")
    assert not torch.allclose(SentenceEncoder(str(tmp_path / "other"))(["star"]), first)


def test_nothing_is_written_where_nothing_is_to_be_remembered(encoder, cache):
    SentenceEncoder(encoder, remember=False)(["star"])
    assert not cache.exists()


def test_without_a_network_what_works_is_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ClipxError, match="cannot get the sentence encoder") as caught:
        SentenceEncoder("sentence-transformers/no-such-encoder")
    assert "semantics=words" in caught.value.hint


def test_without_transformers_what_works_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ClipxError, match="transformers") as caught:
        SentenceEncoder("x")
    assert "clipx[transformers]" in caught.value.hint
    assert "semantics=words" in caught.value.hint


def test_a_width_of_one_tells_nothing_apart():
    with pytest.raises(ClipxError, match=r"semantics\.width=1"):
        HashedWords(1)
