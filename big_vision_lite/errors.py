"""Errors that users can act on: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Iterator

from big_vision_lite import __version__


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


class UnusableImageError(BadImageError):
    """One image that the task has no room for. The ``on_bad_image`` policy applies to it as well."""

    def __init__(self, example_id: str, reason: str):
        super().__init__(example_id, reason)
        self.args = (f"image {example_id!r} cannot be used: {reason}",)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: ``"; did you mean 'train'?"``, or the valid names where none is close."""
    names = sorted(valid)
    if same := same_in_unicode(name, names):
        return same
    close = difflib.get_close_matches(name, names, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"; valid: {shown}"


def same_in_unicode(name: str, valid: Iterable[str]) -> str:
    """A hint for a name that looks like a valid one but is another text, as with the decomposed accents of macOS; empty
    where there is none such."""
    normal = unicodedata.normalize("NFC", name)
    same = next((other for other in valid if other != name and unicodedata.normalize("NFC", other) == normal), None)
    if same is None:
        return ""
    return (f"; there is {same!a}, which looks the same but is not {name!a}: they differ in Unicode normalization (NFC "
            "or NFD); rename one of them")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for a message of one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError):  # a bucket's, which has but the object's address
        return os.strerror(errno.ENOENT)
    if isinstance(error, MemoryError) and not str(error):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def exit_code(error: Exception, debug: bool = False) -> int:
    """Print the error that ends a command, and return its exit code.

    Args:
      debug: print the traceback too.

    Returns:
      2, after one line, for bad input, a disk, a network, or too little memory; 1, after the traceback, for anything
      else, which is a bug of this package.
    """
    # JAX's, of a device; in a UserError it may be TensorStore's, of a disk.
    out_of_memory = "RESOURCE_EXHAUSTED" in str(error) and not isinstance(error, UserError)
    code = 2 if out_of_memory or isinstance(error, UserError | OSError | MemoryError) else 1
    if debug or code == 1:
        traceback.print_exception(error)
    text = str(error) if isinstance(error, UserError) else first_line(error)
    if name := getattr(error, "filename", None):
        text = f"{name}: {text}"
    if out_of_memory:
        text = f"the device is out of memory: {text}; take smaller batches or images, or --grad-accum-steps 2"
    if code == 1:
        text = (f"this is a bug of big_vision_lite {__version__} ({type(error).__name__}: {text}); please report it "
                "with the lines above")
    print(f"bvl: {printable(text)}", file=sys.stderr)
    return code


def printable(text: str) -> str:
    """The text on one line that any terminal can show: other characters are escaped as in Python, and words of
    thousands of characters shortened."""
    text = re.sub(r"\S{1000,}", lambda word: f"{word[0][:400]}...{word[0][-100:]}", text)
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


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
