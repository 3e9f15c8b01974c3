"""TensorBoard: a run's rows as event files that its fast loader shows in full.

policy      which rows become what, and under which tag and step
streams     which subdirectory a session writes to, and when it needs a further one
entries     what the policy says and the files hold
config      a run's configuration, flattened for reading and for the HPARAMS tab
summaries   an entry as the bytes of an event
files       event files: framing, commits, and what a crash leaves behind
sink        the four together, behind the interface of every sink
"""

from telemetry.sinks.tensorboard.sink import TensorBoardSink

__all__ = ["TensorBoardSink"]
