"""A local object store with Google's API: put, get, list, delete, copy; no appending, no renaming."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import struct
import threading
import urllib.parse
from collections.abc import Iterator

import google_crc32c
import pytest


class ObjectStore(http.server.ThreadingHTTPServer):
    """The objects of one bucket, served by the JSON API.

    Attributes:
      objects: content and generation by name.
      calls: (verb, name) of each request that changes something.
      away: while this is set, every request fails.
    """

    daemon_threads = True

    def __init__(self, bucket: str = "bucket"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket, self.lock, self.generation = bucket, threading.Lock(), 1000
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.calls: list[tuple[str, str]] = []
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.away = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Clients hang up when they end."""

    def text(self, name: str) -> str:
        return self.objects[name][0].decode()

    def under(self, prefix: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))


@contextlib.contextmanager
def serving() -> Iterator[ObjectStore]:
    """A store that the clients of this process, and of those that it starts, take for Google's. They look up its
    address once: one for a whole test file."""
    import fsspec
    import gcsfs

    from big_vision_lite.system import paths

    def forget() -> None:  # clients of other tests, and finally those of this store
        gcsfs.GCSFileSystem.clear_instance_cache()
        paths._store.cache_clear()

    forget()
    server = ObjectStore()
    address = {"STORAGE_EMULATOR_HOST": server.url, "TENSORSTORE_GCS_HTTP_URL": server.url,
               "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody", "FSSPEC_GCS": '{"token": "anon"}'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in address.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server
    forget()
    server.shutdown()
    server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def log_message(self, *unused) -> None:
        pass

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = self._chunks()
        address = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(address.query, keep_blank_values=True).items()}
        if self.server.away:
            return self._respond(403, {"error": {"code": 403, "message": "the store is away"}})
        if address.path.startswith("/batch"):
            return self._batch(body)
        with self.server.lock:
            self._respond(*self._answer(self.command, address.path.removeprefix("/download"), query, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _do

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, verb: str, path: str, query: dict[str, str], body: bytes) -> tuple:
        store = self.server
        root = f"/storage/v1/b/{store.bucket}"
        if path in (root, root + "/storageLayout"):
            return 200, {"name": store.bucket, "locationType": "region", "hierarchicalNamespace": {"enabled": False}}
        if path == f"/upload{root}/o":
            return self._upload(verb, query, body)
        if path == root + "/o" and verb == "GET":
            return 200, self._list(query)
        if path.startswith(root + "/o/"):
            name, _, action = (urllib.parse.unquote(piece) for piece in path[len(root) + 3:].partition("/"))
            copied = re.fullmatch(rf"(?:rewriteTo|copyTo)/b/{store.bucket}/o/(.+)", action)
            if verb == "POST" and copied and name in store.objects:
                target = urllib.parse.unquote(copied[1])
                store.calls.append(("copy", target))
                self._put(target, store.objects[name][0])
                return 200, {"done": True, "resource": self._describe(target)}
            if action:  # compose would append, moveTo rename
                return 405, {"error": {"code": 405, "message": f"this store knows no {action.partition('/')[0]}"}}
            if name not in store.objects:
                return 404, {"error": {"code": 404, "message": f"No such object: {name}"}}
            data, generation = store.objects[name]
            if not self._as_expected(query, generation):
                return (304 if "ifGenerationNotMatch" in query else 412), {"error": {"code": 412, "message": "changed"}}
            if verb == "DELETE":
                store.calls.append(("delete", name))
                del store.objects[name]
                return 204, b""
            if query.get("alt") == "media":
                return self._content(data, generation)
            if verb == "GET":
                return 200, self._describe(name)
        return 404, {"error": {"code": 404, "message": f"{verb} {path}"}}

    def _as_expected(self, query: dict[str, str], generation: int) -> bool:
        return (int(query.get("ifGenerationMatch", generation)) == generation
                and int(query.get("ifGenerationNotMatch", -1)) != generation)

    def _content(self, data: bytes, generation: int) -> tuple:
        headers = {"x-goog-generation": str(generation), "etag": f'"{generation}"',
                   "content-type": "application/octet-stream"}
        requested = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if not requested:
            return 200, data, headers
        first = int(requested[1]) if requested[1] else max(len(data) - int(requested[2]), 0)
        last = min(int(requested[2]), len(data) - 1) if requested[1] and requested[2] else len(data) - 1
        if first >= len(data):
            return 416, b"", {"content-range": f"bytes */{len(data)}"}
        return 206, data[first:last + 1], headers | {"content-range": f"bytes {first}-{last}/{len(data)}"}

    def _upload(self, verb: str, query: dict[str, str], body: bytes) -> tuple:
        kind = query.get("uploadType")
        if "upload_id" in query:
            name, data = self.server.uploads[query["upload_id"]]
            data += body
            if self.headers.get("content-range", "").endswith("/*"):
                return 308, b"", {"range": f"bytes=0-{len(data) - 1}"}
            return self._put(name, bytes(data))
        if kind == "resumable":
            key = str(len(self.server.uploads))
            self.server.uploads[key] = (query.get("name") or json.loads(body)["name"], bytearray())
            return 200, b"", {"location": f"{self.server.url}{self.path}&upload_id={key}"}
        if kind == "multipart":
            edge = re.search(r'boundary="?([^";]+)', self.headers["content-type"])[1].encode()
            description, content = (part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1]
                                    for part in body.split(b"--" + edge)[1:3])
            newline = b"\r\n" if content.endswith(b"\r\n") else b"\n"
            return self._put(json.loads(description)["name"], content.removesuffix(newline))
        old = self.server.objects.get(query["name"], (b"", 0))[1]
        if not self._as_expected(query, old):
            return 412, {"error": {"code": 412, "message": "changed"}}
        return self._put(query["name"], body)

    def _put(self, name: str, data: bytes) -> tuple:
        self.server.generation += 1
        self.server.objects[name] = (data, self.server.generation)
        self.server.calls.append(("put", name))
        return 200, self._describe(name)

    def _describe(self, name: str) -> dict:
        data, generation = self.server.objects[name]
        when = "2026-01-01T00:00:00.000Z"
        crc = base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {"kind": "storage#object", "id": f"{self.server.bucket}/{name}/{generation}", "name": name,
                "bucket": self.server.bucket, "generation": str(generation), "metageneration": "1",
                "size": str(len(data)), "crc32c": crc, "md5Hash": md5, "etag": str(generation),
                "timeCreated": when, "updated": when, "storageClass": "STANDARD",
                "contentType": "application/octet-stream"}

    def _list(self, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in self.server.under(prefix):
            if not (name >= query.get("startOffset", "") and ("endOffset" not in query or name < query["endOffset"])):
                continue
            if delimiter and delimiter in (rest := name[len(prefix):]):
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _batch(self, body: bytes) -> None:
        """Several requests in one: the client deletes folders like this."""
        parts = []
        for verb, path in re.findall(rb"^(DELETE|GET) (\S+) HTTP", body, re.M):
            address = urllib.parse.urlsplit(path.decode())
            with self.server.lock:
                code = self._answer(verb.decode(), address.path, {}, b"")[0]
            parts.append(f"--edge\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} Answered\r\n\r\n\r\n")
        self._respond(200, ("".join(parts) + "--edge--").encode(), {"content-type": 'multipart/mixed; boundary="edge"'})

    def _respond(self, code: int, body: bytes | dict, headers: dict[str, str] | None = None) -> None:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        with contextlib.suppress(ConnectionError):
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            if code not in (204, 304):
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            if code not in (204, 304):
                self.wfile.write(body)
