"""Diagnostics of quantization and gradients, which the training loop asks for."""
