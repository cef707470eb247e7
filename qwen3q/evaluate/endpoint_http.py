"""JSON and event streams over HTTP with Python's own client: bounded in time and size.

Nothing is followed to another address, so a key goes only to the server that was named.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qwen3q.errors import Qwen3qError, UsageError

KEY_VARIABLES = ("QWEN3Q_API_KEY", "OPENAI_API_KEY")
MAX_REPLY_BYTES = 256 << 20
MAX_EVENT_BYTES = 1 << 20
ATTEMPTS = 4
"""How often a busy server is asked."""
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What reading an answer of another shape raises."""

_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 30.0
_SHOWN = 200


class EndpointError(Qwen3qError):
    """A server that can't be reached, refuses, or answers what makes no sense."""


class RefusedError(EndpointError):
    """The server answered with an error.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        base: path of the OpenAI-compatible API, such as ``/v1``, without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    base: str

    @property
    def root(self) -> str:
        """Path of the server's own API, beside the OpenAI-compatible one."""
        return self.base.removesuffix("/v1")

    @property
    def place(self) -> str:
        """``host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.place}{self.base}"

    @property
    def is_private(self) -> bool:
        """Whether nobody between here and there can read along."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def is_url(name: str) -> bool:
    """Whether an artefact's name is an endpoint's."""
    return name.lower().startswith(("http://", "https://"))


def parse_address(url: str) -> Address:
    """The address that ``url`` names; a bare ``http://host:port`` means ``/v1`` there.

    Raises:
        UsageError: no such URL can be asked.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname
        port = parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        raise UsageError(f"{url!r} is no URL.", "Such as http://127.0.0.1:8080/v1.") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"The URL of {host} holds a password.", f"Put the key into {KEY_VARIABLES[0]}."
        )
    if scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no endpoint.", "Such as http://127.0.0.1:8080/v1.")
    return Address(scheme, host, port, parts.path.rstrip("/") or "/v1")


class ApiKey(NamedTuple):
    """A key and the environment variable that it came from."""

    variable: str
    secret: str


def api_key(address: Address, environment: Mapping[str, str] = os.environ) -> ApiKey | None:
    """The key for ``address`` from the environment.

    OPENAI_API_KEY, which is seldom meant for a server of one's own, does not go over plain HTTP
    to another machine.

    Raises:
        UsageError: it can't be a key.
    """
    for name in KEY_VARIABLES if address.is_private else KEY_VARIABLES[:1]:
        key = environment.get(name)
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(f"{name} holds no key: it has blanks or odd characters.")
            return ApiKey(name, key)
    return None


class Client:
    """Asks one server."""

    def __init__(
        self,
        address: Address,
        *,
        seconds: float = 600.0,
        key: ApiKey | None = None,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """A client that waits up to ``seconds`` for an answer."""
        self.address = address
        self._seconds = seconds
        self._attempts = attempts
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._key = key
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key.secret}"
        self._sleep = sleep
        self._reached = False
        self._open: set[socket.socket] = set()
        self._abandoned = False

    def get(self, path: str) -> Any:
        """The JSON at ``path``.

        Raises:
            EndpointError: as ``post``.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that ``body`` is answered with; a busy or failing server is asked again.

        Raises:
            RefusedError: the server says no.
            EndpointError: no connection, too late, too long, or no JSON.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def abandon(self) -> None:
        """Breaks off what is being asked, in other threads too; nothing can be asked afterwards."""
        self._abandoned = True
        for connected in tuple(self._open):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[bytes]]:
        """The lines that ``body`` is answered with, as they arrive; asked once.

        The request is sent when the first line is asked for; the connection is made before.

        Raises:
            RefusedError, EndpointError: as ``post``, but for JSON.
        """
        try:
            with self._connection() as connection:
                yield self._lines(connection, path, json.dumps(body).encode())
        except _PassingError as error:
            raise error.error from None

    def _lines(
        self, connection: http.client.HTTPConnection, path: str, body: bytes
    ) -> Iterator[bytes]:
        with self._failures():
            response = self._send(connection, "POST", path, body)
            while line := response.readline(MAX_EVENT_BYTES + 1):
                if len(line) > MAX_EVENT_BYTES:
                    raise self._error(f"sends a line of more than {MAX_EVENT_BYTES:,} bytes")
                yield line

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        for attempt in range(1, self._attempts + 1):
            try:
                with self._connection() as connection, self._failures():
                    return self._json(self._send(connection, method, path, body))
            except _PassingError as error:
                if attempt == self._attempts or not self._reached or self._abandoned:
                    raise error.error from None
                self._sleep(min(_LONGEST_PAUSE, max(error.pause, 0.5 * 2**attempt)))
        raise AssertionError

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        secure = self.address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self.address.host, self.address.port, timeout=_CONNECT_SECONDS)
        connected: socket.socket | None = None
        try:
            with self._failures():
                connection.connect()
                connected = connection.sock
                connected.settimeout(self._seconds)
                self._open.add(connected)
                if self._abandoned:
                    raise ConnectionAbortedError
            self._reached = True
            yield connection
        finally:
            if connected is not None:
                self._open.discard(connected)
            connection.close()

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        if response.status != 200:
            raise self._refusal(path, response)
        return response

    def _json(self, response: http.client.HTTPResponse) -> Any:
        deadline = time.monotonic() + self._seconds
        parts, size = [], 0
        while piece := response.read1(1 << 20):
            parts.append(piece)
            size += len(piece)
            if size > MAX_REPLY_BYTES:
                raise self._error(f"answers with more than {MAX_REPLY_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            raise self._error("answers with what is no JSON") from None

    def _refusal(self, path: str, response: http.client.HTTPResponse) -> Exception:
        status = response.status
        if 300 <= status < 400:
            target = plain(response.getheader("Location") or "nowhere")
            return RefusedError(
                f"{self.address.url} sends on to {target}.",
                "Nothing is followed; name that address instead.",
                status,
            )
        reason = _reason(response.read(1 << 16))
        said = f": {reason}" if reason else ""
        if status in (401, 403):
            hint = self._key_hint()
        elif status == 404:
            hint = "Check the URL (most servers: http://host:port/v1) and --endpoint-model."
        else:
            hint = "The server's log may say more."
        refused = RefusedError(
            f"{self.address.url} refuses {path} with {status}{said}.", hint, status
        )
        if status in (408, 429) or status >= 500:
            return _PassingError(refused, _seconds(response.getheader("Retry-After")))
        return refused

    def _key_hint(self) -> str:
        if self._key is not None:
            return f"It was sent the key in {self._key.variable}: check that it is this server's."
        ours, general = KEY_VARIABLES
        if not self.address.is_private and os.environ.get(general):
            return (
                f"{general} is not sent over plain HTTP to another machine: use https, or put the "
                f"key into {ours}."
            )
        return f"No key was sent: it goes into the environment variable {ours}."

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what the network does into a sentence."""
        try:
            yield
        except TimeoutError:
            raise self._error(
                f"gave no answer within {self._seconds:g} seconds",
                "A larger --endpoint-timeout waits longer.",
            ) from None
        except ConnectionRefusedError:
            raise _PassingError(
                self._error("can't be reached: connection refused", "Is the server running?")
            ) from None
        except (ConnectionError, http.client.IncompleteRead):
            what = "broke off the connection"
            raise _PassingError(self._error(what, "Is the server still running?")) from None
        except http.client.HTTPException:
            raise self._error("does not speak HTTP", "Check the URL's port.") from None
        except (OSError, UnicodeError) as error:
            why = plain(str(getattr(error, "strerror", None) or error))
            raise _PassingError(self._error(f"can't be reached: {why}", "Check the URL.")) from None

    def _error(self, what: str, hint: str = "") -> EndpointError:
        return EndpointError(f"{self.address.url} {what}.", hint)


class _PassingError(Exception):
    """A failure that may be over the next time."""

    def __init__(self, error: EndpointError, pause: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause = pause


def plain(text: str) -> str:
    """One printable line of a server's text, not too long."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN]).split()
    line = " ".join(words)
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _reason(body: bytes) -> str:
    """The sentence in an error's body, however the server wraps it: Ollama passes on the whole
    body of the server behind it."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    if not isinstance(found, str):
        return ""
    inner = _reason(found.encode()) if found.startswith("{") else ""
    return inner or plain(found).rstrip(".")


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
