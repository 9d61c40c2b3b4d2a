"""Weights from the network: fetched once, resumed where an interruption left them, checked and kept."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from big_vision_lite.errors import UserError

SUFFIXES = (".safetensors", ".npz")
"""What is taken from the network: formats that hold arrays and nothing else."""

_TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_ATTEMPTS = 3
"""Connections in turn that may bring nothing."""
_WAIT = 1.0
"""Seconds before the second of them; twice as many before the third."""
_PIECE = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")


def is_remote(source: str) -> bool:
    return source.startswith(("hf:", "https://", "http://"))


def fetch(source: str, cache: Path) -> Path:
    """The file that ``source`` names, in ``cache``; from the network only if it is not there yet.

    Args:
      source: ``hf:OWNER/NAME[@REVISION][/FILE]`` for a repository of Hugging Face (its ``model.safetensors`` unless
        FILE says otherwise; ``$HF_ENDPOINT`` names a mirror, ``$HF_TOKEN`` opens private ones), or an https URL of a
        .safetensors or .npz file. ``#sha256=...`` at the end is verified each time.

    Raises:
      UserError: the name is not understood, the server cannot be reached or has no such file, or the checksum is
        another. What has arrived is kept, and the next call goes on from there.
    """
    plain, expected = _parse(source)
    url = _url(plain)
    parts = urllib.parse.urlsplit(url)
    name = parts.path.rsplit("/", 1)[-1]
    if not name.endswith(SUFFIXES):
        raise UserError(f"weights {source!r}: the file is {name!r}; expected one that ends in {' or '.join(SUFFIXES)}, "
                        "which can hold nothing but arrays")
    if parts.scheme != "https" and parts.hostname not in _LOCAL:
        raise UserError(f"weights {source!r}: expected https://, so that nobody between can change them")
    target = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    part = target.with_name(target.name + ".part")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _only_one(part):
            if not target.exists():
                _download(url, part, expected, target)
            _verify(target, expected, source)
    except OSError as error:
        raise UserError(f"weights {source!r} cannot be kept in {str(cache)!r}: {error.strerror or error}; $BVL_CACHE "
                        "names another place") from error
    return target


def _parse(source: str) -> tuple[str, str | None]:
    """The source without its fragment, and the checksum that the fragment asks for."""
    plain, _, fragment = source.partition("#")
    if not fragment:
        return plain, None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise UserError(f"weights {source!r}: '#{fragment}' is not understood; expected #sha256= and 64 hexadecimal "
                        "digits")
    return plain, match[1].lower()


def _url(plain: str) -> str:
    if not plain.startswith("hf:"):
        return plain
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?", plain)
    if not match:
        raise UserError(f"weights {plain!r} are not understood; expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
                        "hf:OWNER/NAME/FILE")
    repository, revision, file = match[1], match[2] or "main", match[3] or "model.safetensors"
    return f"{_endpoint()}/{repository}/resolve/{revision}/{file}"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@contextlib.contextmanager
def _only_one(part: Path) -> Iterator[None]:
    """Processes that want the same file wait for the first of them."""
    import fcntl

    with open(part.with_name(part.name + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, part: Path, expected: str | None, target: Path) -> None:
    """``url`` to ``part`` and, whole, to ``target``; in as many connections as it takes."""
    host = urllib.parse.urlsplit(url).hostname
    failed, most = 0, _size(part)
    while True:
        try:
            _connect(url, part, expected)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:  # those may pass
                hint = "; a private repository needs $HF_TOKEN" if error.code in (401, 403) else ""
                raise UserError(f"{host} has no weights at {url}: {error.code} {error.reason}{hint}") from error
            reason = error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = error
        failed = 0 if _size(part) > most else failed + 1
        most = max(most, _size(part))
        if failed == _ATTEMPTS:
            raise UserError(f"cannot fetch weights from {host}: {getattr(reason, 'reason', reason)}; {_size(part)} "
                            "bytes are kept and the next try goes on from there; without a network, put the file at "
                            f"{str(target)!r} or name its path") from reason
        time.sleep(_WAIT * failed)
    part.replace(target)
    _validator(part).unlink(missing_ok=True)


def _connect(url: str, part: Path, expected: str | None) -> None:
    """One connection: what is still lacking of ``url`` to the end of ``part``. Raises unless it is whole then."""
    request = urllib.request.Request(url, headers={"User-Agent": "big_vision_lite"})
    token, endpoint = os.environ.get("HF_TOKEN"), urllib.parse.urlsplit(_endpoint())
    if token and urllib.parse.urlsplit(url)[:2] == endpoint[:2]:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not to where its files are stored
    start = _size(part)
    known = _validator(part).read_text() if _validator(part).exists() else None
    if start and (known or expected):  # otherwise nothing would tell that the file there has changed
        request.add_header("Range", f"bytes={start}-")
        if known:
            request.add_header("If-Range", known)
    try:
        response = urllib.request.build_opener(_Secure).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if size and int(size[1]) == start:
            return  # it had arrived whole when the process ended
        part.unlink()
        raise ConnectionError("the file there is another one now") from error
    with response:
        continued = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and continued and int(continued[1]) == start:
            total, mode = int(continued[2]), "ab"
        else:
            length = response.headers.get("Content-Length")
            total, mode = int(length) if length else None, "wb"
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            _validator(part).write_text("" if tag.startswith("W/") else tag)
        with open(part, mode) as file:
            while piece := _read(response):
                file.write(piece)
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_PIECE)
    except OSError as error:  # not to be taken for one of the disk
        raise ConnectionError(str(error) or type(error).__name__) from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


class _Secure(urllib.request.HTTPRedirectHandler):
    """Follows no way from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it points on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _validator(part: Path) -> Path:
    """Where it is kept which version of the file the first bytes were of."""
    return part.with_name(part.name + ".version")


def _verify(target: Path, expected: str | None, source: str) -> None:
    if expected is None:
        return
    with open(target, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        target.unlink()
        raise UserError(f"weights {source.partition('#')[0]!r} have sha256 {found}, expected {expected}; they are "
                        "damaged or have been changed; what arrived is removed")
