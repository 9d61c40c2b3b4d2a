"""The members of tar files, with the checks that tarfile leaves out: damage that would silently lose images."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator

from big_vision_lite.data.sources.files import is_image
from big_vision_lite.data.sources.remote import open_file
from big_vision_lite.data.sources.shard_index import MAX_CLASSES
from big_vision_lite.errors import UserError, first_line

TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What tarfile raises for damage."""


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def visible_members(opened: tarfile.TarFile, file: str, base: int, size: int, file_size: int
                    ) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Members and the byte of ``file`` at which the content of each starts; no folders or hidden files.

    Args:
      file: path of the outermost file, for messages.
      base: where in it the tar file starts; ``size`` is its size, ``file_size`` that of the outermost file.

    Raises:
      UserError: the file is damaged or truncated, or an image is a link or sparse.
    """
    while (member := opened.next()) is not None:
        opened.members.clear()  # tarfile would keep a kilobyte per member
        start, hidden = base + member.offset_data, member.name.rpartition("/")[2].startswith(".")
        if member.size < 0 or opened.offset <= member.offset:  # tarfile would go round in circles
            raise UserError(f"{file} is damaged: wrong size at byte {base + member.offset:,}; copy it again")
        if member.isreg() and member.offset_data + member.size > size:
            raise UserError(f"{file} is truncated: {member.name!r} ends at byte {start + member.size:,}, but its tar "
                            f"file at {base + size:,}; copy it again")
        if hidden or member.isdir():
            continue
        if is_image(member.name) and (not member.isreg() or member.issparse()):
            raise UserError(f"{file} at byte {base + member.offset:,}: {member.name!r} is a link or sparse; pack the "
                            "file again with --dereference --hard-dereference and without --sparse")
        yield member, start
    # tarfile takes anything that is not a header for the end. The real end is zeros, up to the end of the file unless
    # tar files were concatenated.
    opened.fileobj.seek(opened.offset)
    rest = opened.fileobj.read(64 * 1024)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise UserError(f"{file} is damaged or truncated: its list of members ends at byte {base + opened.offset:,} of "
                        f"{file_size:,}; copy or pack it again")


def unreadable(file: str, error: Exception, base: int = 0, member: str = "") -> str:
    """The message for one of `TAR_ERRORS`."""
    where = f"{file}{f': {member!r} at byte {base:,}' if member else ''}"
    with open_file(file) as opened:
        opened.seek(base)
        start = opened.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return (f"{where} is compressed, which prevents random access; unpack it with `tar -xf` and name the resulting "
                "folder")
    return f"{where} is not a complete tar file ({first_line(error)}); copy it again"


def example_key(member: str) -> tuple[str, str]:
    """What the files of one example of a WebDataset share, up to the first dot of the name, and the rest."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension.lower()


def class_name(content: bytes, file: str, member: str) -> str:
    """The class in a .cls file of a WebDataset. Raises: UserError."""
    text = content.decode(errors="replace").strip()
    if re.fullmatch("[0-9]{1,9}", text) and int(text) < MAX_CLASSES:
        return str(int(text))
    if not text.isprintable() or re.fullmatch("[-+0-9., ]*", text):
        raise UserError(f"{file}: {member!r} has the class {text!r}; expected a number from 0 on, or a name")
    return text
