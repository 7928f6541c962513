"""Who may speak to the server: one gate in front of every route, Gradio's and ours alike."""

import base64
import binascii
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger("studio.server")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BODY = 1100 * 2**20
# Whatever a page is made to show, it speaks to nobody but this server.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:;"
    " connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_START = "/gradio_api/startup-events"  # which Gradio calls on itself as it starts; it says true or false, once
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Guard:
    """Refuses requests for another host, from another site, with too large a body, and without the password.

    `hosts` are the names under which the server may be called; `password` is asked of every request where it is given,
    by HTTP Basic with any user name.
    """

    app: Application
    hosts: tuple[str, ...] = LOOPBACK
    password: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self.refusal(headers, scope["path"])
        if refusal is None:
            await self.app(scope, receive, _signed(send))
            return
        status, why = refusal
        client = (scope.get("client") or ("?",))[0]
        log.warning("refused %s: %s %r: %s", client, scope.get("method", "WS"), scope["path"][:200], why)
        await _answer(send, scope["type"], status, why)

    def refusal(self, headers: dict[str, str], path: str) -> tuple[int, str] | None:
        """(status, reason) where a request for `path` with such headers is not let through."""
        host = headers.get("host", "")
        if _name_of(f"//{host}") not in self.hosts:
            return 421, "This server is not called so. Add the name with --allow-host."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "Requests from other sites are refused."
        foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
        if foreign:
            return 403, "Requests from other sites are refused."
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BODY:
            return 413, f"At most {MOST_BODY // 2**20} MiB at once."
        if self.password is not None and path != _START and not self._knows(headers.get("authorization", "")):
            return 401, "The password is missing or wrong."
        return None

    def _knows(self, authorization: str) -> bool:
        kind, _, coded = authorization.partition(" ")
        try:
            _, _, given = base64.b64decode(coded, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given.encode(), (self.password or "").encode())


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _signed(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {key for key, _ in _HEADERS}
            kept = [(key, value) for key, value in message.get("headers", []) if key.lower() not in own]
            message = {**message, "headers": [*kept, *_HEADERS]}
        await send(message)

    return send_with_headers


async def _answer(send: Send, kind: str, status: int, why: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = why.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="concept-studio", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
