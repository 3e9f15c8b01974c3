"""The script that made tokenizer.json: WordPiece, uncased, 8,192 tokens, from the training novels.

It is kept as a record of how the shipped file was made. Training a tokenizer is not
deterministic: running this again makes another file. The hash of the file is in every run's
config.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from trainer.data.corpus import load_sample

VOCABULARY_SIZE = 8192


def main() -> None:
    """Train the tokenizer and write it beside this script."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    paragraphs = load_sample().splits["train"]
    tokenizer.train_from_iterator(paragraphs, vocab_size=VOCABULARY_SIZE, show_progress=False)
    tokenizer.save(str(Path(__file__).with_name("tokenizer.json")), pretty=False)


if __name__ == "__main__":
    main()
