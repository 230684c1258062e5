import gzip
from types import SimpleNamespace

import open_clip
import pytest
import torch

from clipx.errors import ClipxError
from clipx.models.tokenizer import FULL_VOCABULARY, SPECIAL_AND_BYTES, merges, small_tokenizer, special_ids

SENTENCES = {
    "English": "a photo of a small striped circle, left of two grey squares.",
    "German": "ein Foto von größeren Straßenschildern",
    "Chinese": "左边是一个红色的圆形",
    "Italian": "un cerchio rosso è più grande",
    "Russian": "красный круг",
    "Arabic": "دائرة حمراء",
    "emoji": "🔴🟦 🙂",
}


@pytest.fixture(scope="module", params=[SPECIAL_AND_BYTES, 1024, 4096])
def tokenizer(request):
    return small_tokenizer(request.param, 200)


@pytest.mark.parametrize("language", SENTENCES)
def test_every_language_survives_the_round_trip(tokenizer, language):
    (ids,) = tokenizer([SENTENCES[language]])
    end = int(ids.argmax())
    assert ids[0] == tokenizer.sot_token_id
    assert ids[end] == tokenizer.eot_token_id == tokenizer.vocab_size - 1
    assert int(ids.max()) < tokenizer.vocab_size
    assert (ids[end + 1 :] == 0).all()
    text = tokenizer.decode(ids[1:end].tolist())
    assert text.replace(" ", "") == SENTENCES[language].lower().replace(" ", "")


def test_long_texts_are_cut_before_the_end_token():
    tokenizer = small_tokenizer(1024, 16)
    (ids,) = tokenizer(["circle " * 100])
    assert ids.shape == (16,)
    assert ids[-1] == tokenizer.eot_token_id
    assert (ids == tokenizer.eot_token_id).sum() == 1
    (empty,) = tokenizer([""])
    assert empty.tolist() == [tokenizer.sot_token_id, tokenizer.eot_token_id] + [0] * 14


def test_a_larger_vocabulary_needs_fewer_pieces():
    text = [SENTENCES["English"]]
    lengths = [int(small_tokenizer(size, 200)(text).ne(0).sum()) for size in (SPECIAL_AND_BYTES, 1024, 4096)]
    assert lengths[0] > lengths[1] > lengths[2]


def test_the_full_vocabulary_is_that_of_clip():
    texts = list(SENTENCES.values())
    assert torch.equal(small_tokenizer(FULL_VOCABULARY, 77)(texts), open_clip.tokenize(texts))


@pytest.mark.parametrize("size", [SPECIAL_AND_BYTES - 1, FULL_VOCABULARY + 1])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        merges(size)


def test_merges_are_reproducible_bytes():
    assert merges(1024) == merges(1024)
    assert len(gzip.decompress(merges(1024)).decode().split("\n")) == 1 + 1024 - SPECIAL_AND_BYTES


def test_special_tokens_are_named_also_by_wrapped_tokenizers(tokenizer):
    special = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert special_ids(tokenizer) == list(special)
    assert special_ids(SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[2, 0]))) == [0, 2]
    with pytest.raises(ClipxError, match="which of its tokens are special"):
        special_ids(len)
