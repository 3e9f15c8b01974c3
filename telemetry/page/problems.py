"""Problems: reasons why the page has no answer, each with words for a person."""

from __future__ import annotations


class NotFound(Exception):
    """Error: an address without anything behind it; the message is for a person."""


class BadQuery(Exception):
    """Error: a question with a value that can't be; the message names it."""


class StillReading(Exception):
    """Error: an answer that is not ready yet; the browser asks again."""
