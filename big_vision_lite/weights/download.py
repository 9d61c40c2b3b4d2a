"""Weights by name: a path, a file of a Hugging Face repository, or a URL. Downloads are cached and verified."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import filelock

from big_vision_lite.errors import UserError, reading
from big_vision_lite.system.atomic import replacing
from big_vision_lite.system.cache import cache_dir

SUFFIXES = (".safetensors", ".npz")
"""What may be downloaded: formats that hold arrays and nothing else."""

_TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_ATTEMPTS = 3
"""Consecutive connections that may bring nothing."""
_WAIT = 1.0
"""Seconds before the second of them; twice as long before the third."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


def is_remote(source: str) -> bool:
    """Whether weights are named by a repository or URL, not by a path."""
    return source.startswith(("hf:", "https://", "http://"))


def fetch(source: str) -> Path:
    """The local file that ``source`` names, downloaded unless it is cached.

    Args:
      source: a path; or ``hf:OWNER/NAME[@REVISION][/FILE]``, a file of a Hugging Face repository, by default
        ``model.safetensors``, by Hugging Face's own client with its cache and settings (``$HF_TOKEN``,
        ``$HF_ENDPOINT``, ``$HF_HUB_OFFLINE``), together with the repository's config.json, if it has one; or an https
        URL, cached in ``$BVL_CACHE``. Downloads must be .safetensors or .npz. ``#sha256=...`` after a remote name is
        verified each time.

    Raises:
      UserError: the name is malformed, the server cannot be reached or has no such file, or the checksum differs.
    """
    advice = "expected a path, hf:OWNER/NAME or https://HOST/FILE"
    with reading(f"weights {source!r}", advice, (ValueError, RuntimeError)):  # https://[::1, or a home of nobody
        return _fetch(source)


def _fetch(source: str) -> Path:
    if not is_remote(source):
        return Path(source).expanduser()
    name, _, fragment = source.partition("#")
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not checksum:
        raise UserError(f"weights {source!r}: '#{fragment}' is not understood; expected #sha256= and 64 hexadecimal "
                        "digits")
    path = _from_hub(name) if name.startswith("hf:") else _from_url(name)
    if checksum:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != checksum[1].lower():
            if not name.startswith("hf:"):  # that cache belongs to others too
                path.unlink()
            raise UserError(f"weights {name!r} have sha256 {digest}, expected {checksum[1].lower()}; they are damaged "
                            "or have been changed")
    return path


def _from_hub(name: str) -> Path:
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(\w[\w./-]*))?", name)
    if not match or ".." in name[3:].split("/"):
        raise UserError(f"weights {name!r} are not understood; expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
                        "hf:OWNER/NAME/FILE")
    repository, revision, file = match[1], match[2], match[3] or "model.safetensors"
    _check_suffix(name, file)
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"weights {name!r} need huggingface_hub, which is not installed; pip install "
                        "'big_vision_lite[hub]', or give a file or a URL") from error
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        if "/" not in file:
            with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):  # as where timm tells the architecture
                huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)
        return path
    except Exception as error:  # of HTTP, of names, of the disk: without a common type, and with several lines
        raise UserError(f"cannot fetch weights {name!r}: {type(error).__name__}: "
                        f"{' '.join(str(error).split())[:300]}") from error


def _from_url(url: str) -> Path:
    parts = urllib.parse.urlsplit(url)
    file = parts.path.rsplit("/", 1)[-1]
    _check_suffix(url, file)
    if parts.scheme != "https" and parts.hostname not in _LOCAL:
        raise UserError(f"weights {url!r}: expected https://, so that nobody in between can change them")
    cache = cache_dir() / "weights"
    target = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{file}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock"):
            if not target.exists():
                _download(url, target)
    except OSError as error:
        raise UserError(f"weights {url!r} cannot be cached in {str(cache)!r}: {error.strerror or error}; $BVL_CACHE "
                        "names another place") from error
    return target


def _check_suffix(name: str, file: str) -> None:
    if not file.endswith(SUFFIXES):
        raise UserError(f"weights {name!r}: the file is {file!r}; expected one that ends in {' or '.join(SUFFIXES)}, "
                        "which can hold nothing but arrays")


def _download(url: str, target: Path) -> None:
    """``url`` to ``target``; resumes after lost connections."""
    host, opener = urllib.parse.urlsplit(url).hostname, urllib.request.build_opener(_HttpsOnly)
    tag, largest, failures = None, 0, 0
    with replacing(target) as temporary, open(temporary, "wb") as file:
        while True:
            request = urllib.request.Request(url, headers={"User-Agent": "big_vision_lite"})
            if tag:  # otherwise nothing would tell that the file on the server has changed
                request.add_header("Range", f"bytes={file.tell()}-")
                request.add_header("If-Range", tag)
            try:
                with opener.open(request, timeout=_TIMEOUT) as response:
                    if not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                        file.seek(0)
                        file.truncate()
                        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
                        tag = None if tag and tag.startswith("W/") else tag
                    while piece := _read(response):
                        file.write(piece)
                    if not response.length:
                        return
                reason = f"the connection ended {response.length} bytes early"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code != 429:  # the others may pass
                    raise UserError(f"{host} has no weights at {url}: {error.code} {error.reason}") from error
                reason = error
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = getattr(error, "reason", error)
            failures = 0 if file.tell() > largest else failures + 1
            largest = max(largest, file.tell())
            if failures == _ATTEMPTS:
                raise UserError(f"cannot fetch weights from {host}: {reason}; without a network, put the file at "
                                f"{str(target)!r} or give its path")
            time.sleep(_WAIT * failures)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(1 << 20)
    except OSError as error:  # not to be mistaken for an error of the disk
        raise ConnectionError(str(error) or type(error).__name__) from error


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Refuses redirects from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
