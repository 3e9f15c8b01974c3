"""Made tokenizer.json, once: WordPiece, uncased, 8,192 tokens, from the training novels only.

Kept as the record of how the shipped file came to be. Training is not deterministic, so the
file is shipped and its hash goes into every run's config; running this again makes another one.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from trainer.corpus import load_sample

VOCABULARY_SIZE = 8192


def main() -> None:
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    paragraphs = load_sample().splits["train"]
    tokenizer.train_from_iterator(paragraphs, vocab_size=VOCABULARY_SIZE, show_progress=False)
    tokenizer.save(str(Path(__file__).with_name("tokenizer.json")), pretty=False)


if __name__ == "__main__":
    main()
