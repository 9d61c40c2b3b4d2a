"""Set the URL of this repository everywhere it is named. The one that counts is in pyproject.toml.

    python tools/set_repository.py URL
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def repository_url(root: Path = ROOT) -> str:
    """The URL in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def tracked_files(root: Path = ROOT) -> list[Path]:
    """The text files in git."""
    names = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    binary = (".png", ".jpg", ".npz", ".safetensors", ".pdf")
    paths = [root / name for name in names.stdout.split("\0") if name and not name.endswith(binary)]
    return [path for path in paths if path.is_file()]


def slug(url: str) -> str:
    """OWNER/NAME of a repository on GitHub; Colab opens notebooks from nowhere else."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    if match is None:
        raise SystemExit(f"{url!r} is no repository on GitHub; expected https://github.com/OWNER/NAME")
    return match[1]


def set_repository(url: str, paths: Iterable[Path], root: Path = ROOT) -> list[Path]:
    """Replace the URL in files, and in links to Colab. Returns the files that changed."""
    old, new = slug(repository_url(root)), slug(url)
    link = re.compile(rf"(?<=github)(\.com)?/{re.escape(old)}(?![\w-])".encode())
    changed = []
    for path in paths:
        before = path.read_bytes()
        after = link.sub(rb"\1/" + new.encode(), before)
        if after != before:
            path.write_bytes(after)
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    for file in set_repository(sys.argv[1], tracked_files()):
        print(file.relative_to(ROOT))
