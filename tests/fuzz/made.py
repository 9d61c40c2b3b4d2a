"""Images, files and odd names that inputs of several formats are made of."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int = 0, height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth, so that JPEG's rounding is small."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, (x + y + 37 * seed) % 256], 2).astype(np.uint8)


def encoded(form: str, mode: str = "RGB", seed: int = 0, size: tuple[int, int] = (40, 56), **options) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(pixels(seed, *size))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    depth: int = 8,
    colours: int = 2,
    body: bytes | None = None,
    more: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """A PNG file with this header, whatever its pixels."""
    header = struct.pack(">IIBBBBB", width & 2**32 - 1, height & 2**32 - 1, depth, colours, 0, 0, interlace)
    body = zlib.compress(bytes(2000)) if body is None else body
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def flat_png(side: int, depth: int, colours: int, more: bytes = b"") -> bytes:
    """A sound PNG of ``side`` squared zeros."""
    row = 1 + -(-side * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours] // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(row)) for _ in range(side)) + packer.flush()
    return png(side, side, depth, colours, body, more)


PHOTO = encoded("JPEG", size=(8, 8))
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def tree(folder: Path, *files: str, data: bytes = PHOTO) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


def special(kind: str, path: Path) -> None:
    """A name with an image's suffix that is no ordinary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "full folder":
        tree(path, "inner.jpg")
    else:
        path.symlink_to(
            {
                "zero": "/dev/zero",
                "stdin": "/dev/stdin",
                "random": "/dev/urandom",
                "nowhere": "missing",
                "loop": path.name,
                "parent": "..",
                "memory": "/proc/self/mem",
                "root": "/proc",
            }[kind]
        )


SPECIAL = ("pipe", "socket", "folder", "full folder", "zero", "stdin", "random", "nowhere", "loop", "parent", "memory")
NAMES = (
    "é.jpg",
    "é.jpg",
    "A.JPG",
    "a b.jpg",
    " .jpg",
    "x\ny.jpg",
    "[bold]x.jpg",
    "\x1b[31mred.jpg",
    "\udcff.jpg",
    "a" * 251 + ".jpg",
    ".hidden.jpg",
    "x.jpg.txt",
    "x.",
    "Thumbs.db",
    "desktop.ini",
    "x.JFIF",
    "a,b;c.jpg",
    "~.jpg",
    "-rf.jpg",
    "..jpg",
    "\u202egpj.exe.jpg",
    "x.tar",
    "x.heic",
    "x.svg",
    "$(touch sprung).jpg",
    "x.jpg ",
    "x.py",
)
