"""Errors that users can act on: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


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


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for a message of one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def reading(source: object, advice: str = "", errors: type[Exception] | tuple[type[Exception], ...] = Exception
            ) -> Iterator[None]:
    """Turn what reading outside data raises into ``cannot read SOURCE: REASON; ADVICE``. Only around parsers: a mistake
    of this package within the block would be blamed on the data.

    Raises:
      UserError: for any of ``errors``; a UserError passes as it is.
    """
    with _reported(f"cannot read {source}", advice, errors):
        yield


@contextlib.contextmanager
def writing(target: object, advice: str = "") -> Iterator[None]:
    """Turn an OSError into ``cannot write TARGET: REASON; ADVICE``. Raises: UserError."""
    with _reported(f"cannot write {target}", advice, OSError):
        yield


@contextlib.contextmanager
def _reported(what: str, advice: str, errors: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except errors as error:
        raise UserError(f"{what}: {first_line(error)}" + (f"; {advice}" if advice else "")) from error
