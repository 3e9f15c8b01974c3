"""Monitor: the machine and its runs on a live terminal screen, read from journals.

watch      follows the runs of a data directory, and gives a snapshot of them
figures    names and units of what is shown: one place for all screens
charts     lines of text that draw values: sparklines, bars, curves
text       a snapshot as plain text, or as JSON
screen     a snapshot as a terminal application
command    the command line's part: starts or finds the sidecar, chooses the form
"""
