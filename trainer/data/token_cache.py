"""A cache of packed rows on disk, so that a corpus is tokenized once.

In: a corpus, a tokenizer, the length of a row.
Out: rows by split.
Never: reads rows of other text, another tokenizer or another length: the file name is the hash
of all three.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.files import write_atomically
from shared.terminal import Say
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import LoadedTokenizer

FORMAT = 2


def load_rows(
    corpus: Corpus,
    tokenizer: LoadedTokenizer,
    length: int,
    cache_dir: Path,
    say: Say,
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


def pack_rows(
    paragraphs: Iterable[NDArray[np.int32]], length: int, *, cls_id: int, sep_id: int, pad_id: int
) -> Tensor:
    """Pack paragraphs one after another into rows; only the end of the last row is padding.

    A row is [CLS] and length - 1 tokens of the stream of all paragraphs, each of which ends
    with a [SEP]. Shapes: -> (rows, length) int32.
    """
    separator = np.array([sep_id], dtype=np.int32)
    parts = [part for ids in paragraphs for part in (ids, separator)]
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    count = -(-len(stream) // (length - 1))
    body = np.full(count * (length - 1), pad_id, dtype=np.int32)
    body[: len(stream)] = stream
    rows = np.full((count, length), cls_id, dtype=np.int32)
    rows[:, 1:] = body.reshape(count, length - 1)
    return torch.from_numpy(rows)


def _key(corpus: Corpus, tokenizer: LoadedTokenizer, length: int) -> str:
    text = f"{FORMAT} {corpus.sha256} {tokenizer.name} {tokenizer.sha256} {length}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(path: Path, say: Say) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        rows: dict[str, Tensor] = torch.load(path, weights_only=True)
    # torch.load documents no exceptions; after any of them the cache file is made again.
    except Exception as exc:
        say(f"The cache file {path} is damaged ({type(exc).__name__}) and is made again.")
        return None
    return rows
