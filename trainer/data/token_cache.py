"""A cache of packed rows on disk, so that a corpus is tokenized once.

In: a corpus, a tokenizer, the length of a row.
Out: rows by split.
Never: reads rows of other text, another tokenizer or another length: the file name is the hash
of all three.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shared.files import write_atomically
from trainer.data.batches import pack_rows
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import LoadedTokenizer

FORMAT = 2


def load_rows(
    corpus: Corpus,
    tokenizer: LoadedTokenizer,
    length: int,
    cache_dir: Path,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Return the packed rows of each split, (rows, length) int32.

    They are read from the cache; if they are not there, the text is tokenized now and the
    result cached. A cache that can't be written is told and is no error.
    """
    path = cache_dir / f"tokens-{_key(corpus, tokenizer, length)}.pt"
    cached = _read(path, say)
    if cached is not None:
        return cached
    paragraphs = sum(map(len, corpus.splits.values()))
    say(f"Tokenizing {corpus.name}: {paragraphs:,} paragraphs.")
    rows = {
        split: pack_rows(
            tokenizer.encode(texts),
            length,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            pad_id=tokenizer.pad_id,
        )
        for split, texts in corpus.splits.items()
    }
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(rows, file))
    except OSError as exc:
        say(f"The cache cannot be written ({exc}); the next run will tokenize again.")
    return rows


def _key(corpus: Corpus, tokenizer: LoadedTokenizer, length: int) -> str:
    text = f"{FORMAT} {corpus.sha256} {tokenizer.name} {tokenizer.sha256} {length}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(path: Path, say: Callable[[str], None]) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        rows: dict[str, Tensor] = torch.load(path, weights_only=True)
    # torch.load documents no exceptions; after any of them the cache file is made again.
    except Exception as exc:
        say(f"The cache file {path} is damaged ({type(exc).__name__}) and is made again.")
        return None
    return rows
