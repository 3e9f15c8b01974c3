"""The text that a checkpoint is evaluated on, in rows of the run's own tokenizer.

In: a checkpoint, and the arguments of a command.
Out: Text.
Never: reads another tokenizer than that of the run, whose numbers would mean other words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shared.terminal import Say
from trainer.args import TrainArgs
from trainer.data.batches import evaluation_batches
from trainer.data.corpus import load_corpus
from trainer.data.masking import Batch, Masking
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import LoadedTokenizer, load_tokenizer
from trainer.errors import BadInput
from trainer.evaluation.checkpoint_args import CheckpointArgs
from trainer.training.checkpoint import Checkpoint, tokenizer_of

Batches = Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class Text:
    """Packed rows by split, with the batch size and masking of their evaluation."""

    rows: Mapping[str, Tensor]
    batch_size: int
    masking: Masking

    def batches(self, split: str, limit: int = 0) -> Batches:
        """Return a function that gives the first `limit` batches of a split; all if limit is 0."""
        rows = self.rows[split]
        return lambda: evaluation_batches(rows, self.batch_size, self.masking, limit)


def load_text(args: CheckpointArgs, checkpoint: Checkpoint, say: Say) -> Text:
    """Load the text of --dataset, or that of the run, with the run's own tokenizer.

    Raises:
        BadInput: text or tokenizer cannot be loaded, or the tokenizer is not the run's.
    """
    ours: dict[str, Any] = checkpoint["arguments"]
    dataset = args.dataset or ours["dataset"]
    corpus = load_corpus(dataset, say)
    tokenizer = load_own_tokenizer(checkpoint, say)
    length = checkpoint["identity"]["row length"]
    rows = load_rows(corpus, tokenizer, length, args.cache_dir, say)
    probability = ours.get("mlm_probability", TrainArgs.mlm_probability)
    masking = Masking.with_tokenizer(tokenizer, probability)
    return Text(rows, args.batch_size or ours["batch_size"], masking)


def load_own_tokenizer(checkpoint: Checkpoint, say: Say) -> LoadedTokenizer:
    """Load the tokenizer of the checkpoint's run.

    Raises:
        BadInput: it cannot be loaded, or the one of that name has changed since.
    """
    dataset = checkpoint["arguments"]["dataset"]
    tokenizer = load_tokenizer(tokenizer_of(checkpoint), dataset, say, is_chosen=True)
    theirs = checkpoint["identity"]["tokenizer"]
    if tokenizer.identity != theirs:
        raise BadInput(
            f"the checkpoint's tokenizer is {theirs}, and what can "
            f"be loaded here is {tokenizer.identity}: its numbers would mean other words"
        )
    return tokenizer
