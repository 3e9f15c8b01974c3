"""The corpus: the text that a run learns from, in paragraphs, with a hash that identifies it.

In: the name of a dataset.
Out: a Corpus with the splits "train", "validation" and "test".
Never: puts one dataset in the place of another.

WikiText has marks of its own tokenization: `@-@`, `@,@` and `@.@` stand for a hyphen, a comma
and a point within a word or number, and are replaced by them here. `<unk>`, in the datasets
that are not raw, stands for a rare word that was removed. It is kept, and tokenizers read it as
their unknown token, which is never predicted.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.terminal import Say
from trainer.errors import BadInput

SAMPLE_PATH = Path(__file__).parent / "assets" / "austen.txt.xz"
SAMPLE_LAST_NOVEL = "SENSE AND SENSIBILITY"
HUB_DATASET = "Salesforce/wikitext"


@dataclass(frozen=True)
class Corpus:
    """Paragraphs by split, and the sha256 of them all."""

    name: str
    splits: dict[str, list[str]]
    sha256: str

    @property
    def identity(self) -> str:
        """Name and hash in one text, as checkpoints keep them."""
        return f"{self.name} {self.sha256[:16]}"


def load_corpus(name: str, say: Say) -> Corpus:
    """Load a dataset by the name that --dataset takes.

    Raises:
        BadInput: the dataset could not be reached.
    """
    return load_sample() if name == "sample" else _load_wikitext(name, say)


def load_sample() -> Corpus:
    """Load the embedded sample: six novels; the last is validation and test, half each."""
    text = lzma.decompress(SAMPLE_PATH.read_bytes()).decode("ascii")
    before, title, last_novel = text.partition(f"\n{SAMPLE_LAST_NOVEL}\n")
    held_out = split_paragraphs(title + last_novel)
    half = len(held_out) // 2
    splits = {
        "train": split_paragraphs(before),
        "validation": held_out[:half],
        "test": held_out[half:],
    }
    return Corpus("sample", splits, hash_text([text]))


def split_paragraphs(text: str) -> list[str]:
    """Split text at blank lines into paragraphs; line breaks inside one become spaces."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if paragraph]


def hash_text(parts: Iterable[str]) -> str:
    """Return the sha256 of the parts in order, as hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


def join_wikitext(text: str) -> str:
    """Write `role @-@ playing` as `role-playing`, `1 @,@ 000` as `1,000`, likewise `@.@`."""
    return re.sub(r" ?@([-,.])@ ?", r"\1", text)


def _load_wikitext(name: str, say: Say) -> Corpus:
    say(f"Loading {HUB_DATASET} {name} (without a connection this takes up to a minute to fail).")
    import datasets  # here: takes a second, and only this dataset needs it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(HUB_DATASET, name)
    # The exceptions of a hub that can't be reached are not documented and differ between
    # versions of three libraries; each of them means the same to the user.
    except Exception as exc:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise BadInput(
            f"dataset {name} cannot be loaded ({_shorten(reason)}); "
            "check the connection, or train on the embedded text with --dataset sample"
        ) from exc
    splits = {
        split: [join_wikitext(text.strip()) for text in loaded[split]["text"] if text.strip()]
        for split in ("train", "validation", "test")
    }
    return Corpus(name, splits, hash_text(text for part in splits.values() for text in part))


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
