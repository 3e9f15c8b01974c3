"""TensorBoard: a run's rows as event files that its fast loader shows in full.

policy      chooses the entries, tags and steps for each row
streams     the state of each session, and its subdirectories
placement   chooses the subdirectory of a value, by the last step of its tag
names       turns any name into a tag
units       converts hardware values to units that people read
entries     the plain tuples between policy and encoding
said        entries for starts, ends, messages and configurations
words       lines of text for events without values
config      a run's configuration, flattened for reading and for the HPARAMS tab
summaries   encodes an entry as the bytes of an event
scalars     the same for scalars alone, which are nearly all, but faster
files       event files: framing, commits, and recovery after a crash
lastsfile   the last step and value of each tag, on disk beside the cursor
starts      the number that each process of the sink puts into its files' names
sink        the sink itself, which puts these together
"""

from telemetry.sinks.tensorboard.tensorboard_sink import TensorBoardSink

__all__ = ["TensorBoardSink"]
