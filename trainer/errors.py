"""Errors that are told in one sentence instead of a traceback, and the program's exit codes."""

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class BadInput(Exception):
    """An argument that can't be carried out; the message names it and a way out."""


class TrainingFailed(Exception):
    """A failure of a run that had begun; the message says why and what to try."""


class TrainingDiverged(TrainingFailed):
    """Divergence: the loss, gradients or weights are NaN or infinite."""


class OutOfMemory(TrainingFailed):
    """Lack of memory for a step."""


class PeerLost(TrainingFailed):
    """Loss of another process of the run, which has ended or does not answer."""
