"""The tokenizer of small models: CLIP's byte-pair encoding, cut to its most frequent merges.

CLIP's 49,408 tokens would make the embedding table of a CPU-sized model larger than the rest of it. Byte-pair
merges are ordered by frequency, so the first ``vocab_size - 514`` of them are a complete tokenizer of their
own: every text in every language still encodes, rarer words into more pieces. The end-of-text token stays the
highest id, which is what open_clip's ``argmax`` pooling looks for.
"""

import gzip
import tempfile
from pathlib import Path
from typing import Any

from clipx.errors import ClipxError

FULL_VOCABULARY = 49408
SPECIAL_AND_BYTES = 2 * 256 + 2
"""256 bytes, 256 bytes that end a word, start-of-text and end-of-text."""
MERGES_FILE = "bpe_merges.txt.gz"


def merges(vocab_size: int) -> bytes:
    """The gzip-compressed merge table (in the format of open_clip's ``SimpleTokenizer``) of a vocabulary.

    Raises:
        ValueError: vocab_size outside [514, 49408].
    """
    from open_clip.tokenizer import default_bpe

    if not SPECIAL_AND_BYTES <= vocab_size <= FULL_VOCABULARY:
        raise ValueError(f"vocab_size is {vocab_size}, must be in [{SPECIAL_AND_BYTES}, {FULL_VOCABULARY}]")
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    kept = lines[: 1 + vocab_size - SPECIAL_AND_BYTES]  # the first line is a version comment
    return gzip.compress("\n".join(kept).encode("utf-8"), mtime=0)


def small_tokenizer(vocab_size: int, context_length: int) -> Any:
    """Build an open_clip ``SimpleTokenizer`` whose ids lie in [0, vocab_size).

    Returns:
        a callable ``list[str] -> int64 [B, context_length]``, padded with 0, longer texts cut before the end
        token.
    """
    from open_clip.tokenizer import SimpleTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MERGES_FILE
        path.write_bytes(merges(vocab_size))
        return SimpleTokenizer(bpe_path=str(path), context_length=context_length)


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of an open_clip tokenizer that stand for no word: start, end, padding where it has one.

    Raises:
        ClipxError: it does not say which they are.
    """
    # A tokenizer of the Hugging Face library is wrapped.
    ids = getattr(getattr(tokenizer, "tokenizer", tokenizer), "all_special_ids", None)
    if ids is None:
        raise ClipxError(
            f"{type(tokenizer).__name__} does not say which of its tokens are special",
            hint="CLIP's byte-pair encoding, as in ViT-B-32, does",
        )
    return sorted(int(each) for each in ids)
