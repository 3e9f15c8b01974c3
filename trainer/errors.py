"""The two failures of a training run that are told in one sentence instead of a traceback."""


class BadInput(Exception):
    """What was asked for cannot be done; the message names the thing and the way out."""


class TrainingDiverged(Exception):
    """The loss is no longer a number; the message says since when and what to try."""
