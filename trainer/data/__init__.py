"""Data: text, its tokens, and masked batches of them."""
