"""Errors that users can act on: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


class BadImageError(UserError):
    """One image that cannot be decoded. Carries the example's id for the ``on_bad_image`` policy."""

    def __init__(self, example_id: str, reason: str):
        super().__init__(f"image {example_id!r} cannot be read: {reason}")
        self.example_id = example_id
        self.reason = reason

    def __reduce__(self):  # exceptions are pickled by their constructor's arguments
        return type(self), (self.example_id, self.reason)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: ``"; did you mean 'train'?"``, or the valid names where none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"; valid: {shown}"


def first_line(error: Exception) -> str:
    """The first line of another library's error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
