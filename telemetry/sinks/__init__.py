"""Sinks: readers of a journal that write it to TensorBoard, W&B or a console."""
