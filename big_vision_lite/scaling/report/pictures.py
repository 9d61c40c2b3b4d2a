"""Pictures for a page."""

from __future__ import annotations

import io
from pathlib import Path


def jpeg(path: Path, side: int = 1600) -> bytes | None:
    """A picture, shrunk to fit a page; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=82)
    return buffer.getvalue()
