"""The failures of a training run that are told in one sentence instead of a traceback."""


class BadInput(Exception):
    """What was asked for cannot be done; the message names the thing and the way out."""


class TrainingFailed(Exception):
    """A run that had begun cannot go on; the message says why and what to try."""


class TrainingDiverged(TrainingFailed):
    """The loss or the weights are no longer numbers."""


class OutOfMemory(TrainingFailed):
    """A step does not fit into memory."""


class PeerLost(TrainingFailed):
    """Another process of the run has ended or fallen silent."""
