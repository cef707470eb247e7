"""A small Hub on loopback that speaks the HTTP API huggingface_hub calls, and misbehaves on order.

Large files are "LFS": their resolve address redirects to ``/cdn/SHA256`` and carries the linked
size and checksum, as the Hub's does. Every request is logged with the bytes that were served.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LFS = (".safetensors", "tokenizer.json", ".gguf", ".bin")
BLOCK = 1 << 16
PARQUET = "refs/convert/parquet"
"""The branch where the Hub keeps data sets that it converted."""
RESOLVE = rf"/((?:datasets/)?[^/]+/[^/]+)/resolve/({PARQUET}|[^/]+)/(.+)"


@dataclass
class Request:
    """One request as the server saw it."""

    method: str
    path: str
    range: str | None
    token: str | None
    served: int = 0


@dataclass
class Repo:
    """A repository with one commit.

    Attributes:
        token: the only token that may read it; None for everybody.
        gated: whether its list is public but its files need ``token``.
    """

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False

    @property
    def commit(self) -> str:
        names = "".join(f"{name}{git_sha1(data)}" for name, data in sorted(self.files.items()))
        return hashlib.sha1(names.encode()).hexdigest()


@dataclass
class Hub:
    """The server's state; tests change it between requests.

    Attributes:
        drops: for a file, after how many bytes each of its next answers breaks off.
        damaged: files whose bytes are served wrong, with the right length.
        status: answer every request with this HTTP status.
        ignore_range: answer a range request with the whole file, as some proxies do.
        endpoint: the server's address.
        cdn: its address under another host name, where large files are.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    drops: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    status: int | None = None
    ignore_range: bool = False
    endpoint: str = ""
    cdn: str = ""

    def served_bytes(self, name: str) -> int:
        """Bytes of file ``name`` that went out."""
        return sum(request.served for request in self.file_requests(name))

    def file_requests(self, name: str) -> list[Request]:
        """GET requests that were answered with bytes of ``name``."""
        digests = {sha256(repo.files[name]) for repo in self.repos.values() if name in repo.files}
        return [
            request
            for request in self.log
            if request.method == "GET"
            and (request.path.rsplit("/", 1)[-1] in digests or request.path.endswith(f"/{name}"))
            and request.served
        ]


@cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be logged in to the Hub."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def folder_files(folder: Path) -> dict[str, bytes]:
    """A folder's files as a repository's, but for its data sheet."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}


class HubServer:
    """``with HubServer() as hub`` serves ``hub`` until the block ends."""

    def __enter__(self) -> Hub:
        hub = Hub()
        handler = type("Handler", (_Handler,), {"hub": hub})
        self._server = QuietServer(("127.0.0.1", 0), handler)
        hub.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        hub.cdn = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return hub

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class QuietServer(ThreadingHTTPServer):
    """Prints no traceback where a client hangs up, which is what some tests make it do."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.request_log = Request(
            self.command, path, self.headers.get("Range"), self.headers.get("Authorization")
        )
        self.hub.log.append(self.request_log)
        self.with_body = with_body
        if self.hub.status is not None:
            self._error(self.hub.status)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._list(*match.groups())
        elif match := re.fullmatch(RESOLVE, path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/cdn/([^/]+)/([0-9a-f]{64})", path):
            self._serve(match[1], self._by_sha256(match[2]))
        else:
            self._error(404, "RepoNotFound")

    def _repo(self, name: str, revision: str, *, files: bool) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif repo.token and self.request_log.token != f"Bearer {repo.token}":
            if repo.gated and not files:
                return repo
            if self.request_log.token and not repo.gated:
                self._error(403, message="Forbidden")
            else:
                self._error(401, "GatedRepo" if repo.gated else "RepoNotFound")
        elif revision not in ("main", PARQUET, repo.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _list(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision, files=False)
        if repo is None:
            return
        siblings = []
        for file, data in repo.files.items():
            entry = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
            if file.endswith(LFS):
                entry["blobId"] = "0" * 40
                entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        answer = {"_id": "1", "id": name, "modelId": name, "sha": repo.commit}
        body = json.dumps(answer | {"siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision, files=True)
        if repo is None:
            return
        if file not in repo.files:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        data = repo.files[file]
        headers = {"X-Repo-Commit": repo.commit}
        if not file.endswith(LFS):
            self._serve(file, data, headers | {"ETag": f'"{git_sha1(data)}"'})
            return
        headers["X-Linked-Size"] = str(len(data))
        headers["X-Linked-ETag"] = f'"{sha256(data)}"'
        headers["Location"] = f"{self.hub.cdn}/cdn/{file}/{sha256(data)}"
        self._send(302, b"", headers)

    def _serve(self, file: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"Accept-Ranges": "bytes"} | (headers or {})
        if file in self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        match = re.fullmatch(r"bytes=(\d+)-", self.request_log.range or "")
        if match and not self.hub.ignore_range:
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206, data[start:], headers, self._drop(file))
        else:
            self._send(200, data, headers, self._drop(file))

    def _drop(self, file: str) -> int | None:
        drops = self.hub.drops.get(file)
        return drops.pop(0) if drops and self.with_body else None

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], drop: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not self.with_body:
            return
        body = body if drop is None else body[:drop]
        for start in range(0, len(body), BLOCK):
            block = body[start : start + BLOCK]
            self.request_log.served += len(block)  # before a client has it all and goes on
            try:
                self.wfile.write(block)
            except OSError:
                self.request_log.served -= len(block)
                return
        if drop is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _error(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        if message:
            headers["X-Error-Message"] = message
        self._send(status, b"", headers)

    def _by_sha256(self, digest: str) -> bytes:
        every = (data for repo in self.hub.repos.values() for data in repo.files.values())
        return next(data for data in every if sha256(data) == digest)
