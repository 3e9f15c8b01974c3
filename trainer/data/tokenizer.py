"""The tokenizer, which turns text into token ids, with a hash that identifies its vocabulary.

In: the name that --tokenizer takes, and that of the dataset.
Out: a LoadedTokenizer.
Never: takes the shipped tokenizer instead of one that the user chose, or without a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.terminal import Say
from trainer.errors import BadInput

SHIPPED_PATH = Path(__file__).parent / "assets" / "tokenizer.json"
SHIPPED = "shipped"
DEFAULT = "bert-base-uncased"
CHUNK_PARAGRAPHS = 2000
UNKNOWN_WORD = "<unk>"
"""The mark that WikiText has in the place of rare words."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with the ids that packing and masking need."""

    name: str
    sha256: str
    vocabulary_size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    backend: Any

    @property
    def identity(self) -> str:
        """Name and hash in one text, as checkpoints keep them; see tokenizer_of()."""
        return f"{self.name} {self.sha256[:16]}"

    def encode(self, paragraphs: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each paragraph, without [CLS] and [SEP].

        WikiText's <unk> becomes the tokenizer's unknown token.
        """
        unknown = self.backend.unk_token or UNKNOWN_WORD
        for start in range(0, len(paragraphs), CHUNK_PARAGRAPHS):
            part = paragraphs[start : start + CHUNK_PARAGRAPHS]
            chunk = [text.replace(UNKNOWN_WORD, unknown) for text in part]
            encoded = self.backend(
                chunk, add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            for ids in encoded["input_ids"]:
                yield np.asarray(ids, dtype=np.int32)


def load_tokenizer(name: str, dataset: str, say: Say, is_chosen: bool = False) -> LoadedTokenizer:
    """Load the tokenizer of a run.

    The shipped one takes the place of the default one if that was not chosen (is_chosen) and
    can't be loaded, or if the dataset is the sample.

    Raises:
        BadInput: a tokenizer that was chosen, or is not the default one, could not be loaded.
    """
    if name == SHIPPED:
        return _load_shipped()
    has_substitute = name == DEFAULT and not is_chosen
    if has_substitute and dataset == "sample":
        say(f"Tokenizer: the shipped one (8,192 tokens, made for the sample), not {DEFAULT}.")
        return _load_shipped()
    say(f"Loading the tokenizer {name} (without a connection this takes up to a minute to fail).")
    from transformers import AutoTokenizer  # here: takes most of a second

    try:
        backend = AutoTokenizer.from_pretrained(name, use_fast=True)
    # The exceptions of a hub that can't be reached are not documented and differ between
    # versions; each of them means that this tokenizer can't be loaded now.
    except Exception as exc:
        if has_substitute:
            say(
                f"Tokenizer {DEFAULT} cannot be loaded ({type(exc).__name__}): "
                "the shipped one (8,192 tokens, trained on Jane Austen) takes its place."
            )
            return _load_shipped()
        raise BadInput(
            f"tokenizer {name} cannot be loaded ({type(exc).__name__}); check the name and the "
            f"connection, or take the embedded one with --tokenizer {SHIPPED}"
        ) from exc
    return _describe(name, backend, backend.backend_tokenizer.to_str().encode())


def _load_shipped() -> LoadedTokenizer:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast  # untyped
    backend = make(
        tokenizer_file=str(SHIPPED_PATH),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    # For users of a trained model: add [CLS] and [SEP] to a text, as rows of training have them.
    special = [(token, backend.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special
    )
    return _describe(SHIPPED, backend, SHIPPED_PATH.read_bytes())


def _describe(name: str, backend: Any, definition: bytes) -> LoadedTokenizer:
    ids = {role: getattr(backend, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask")}
    missing = [role for role, token_id in ids.items() if token_id is None]
    if missing:
        raise BadInput(
            f"tokenizer {name} has no {' or '.join(missing)} token, which masked training needs; "
            f"take one of BERT's kind, or --tokenizer {SHIPPED}"
        )
    return LoadedTokenizer(
        name=name,
        sha256=hashlib.sha256(definition).hexdigest(),
        vocabulary_size=len(backend),
        pad_id=ids["pad"],
        cls_id=ids["cls"],
        sep_id=ids["sep"],
        mask_id=ids["mask"],
        special_ids=tuple(sorted(backend.all_special_ids)),
        backend=backend,
    )
