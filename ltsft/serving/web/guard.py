"""What stands before the routes: what a body is, its size and time, the measure of a request, and API keys."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable
from email.message import Message as Header

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics

__all__ = ["ApiKeys", "Guard", "problem"]


def problem(code: str, message: str) -> dict[str, dict[str, str]]:
    """Give the JSON of an error. Whatever was sent may be in the message: what is not valid text is escaped."""
    return {"error": {"code": code, "message": message.encode("utf-8", "backslashreplace").decode("utf-8")}}


class ApiKeys:
    """The keys that may ask; kept as hashes, and compared in the same time whether right or wrong.

    Args:
        keys: none at all lets everybody ask.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = tuple(_digest(key.encode()) for key in keys)

    @property
    def are_needed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._hashes)

    def allow(self, scope: Scope) -> bool:
        """Say whether a request carries a key, as ``X-API-Key`` or as a bearer token."""
        if not self._hashes:
            return True
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"")
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not given and kind.lower() == b"bearer":
            given = token.strip()
        found = [hmac.compare_digest(_digest(given), known) for known in self._hashes]
        return any(found)


class Guard:
    """ASGI middleware: measures every request, and refuses those without a key or with too large or too slow a body.

    Args:
        app: what answers.
        limits: of the server.
        metrics: told of each request.
        keys: who may ask.
        route_of: names the route of a path, for the metrics; never a path itself, of which there is no end.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, metrics: Metrics, keys: ApiKeys, route_of: Callable[[str], str]
    ) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._keys = keys
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, statuses = time.perf_counter(), [500]
        is_head = scope["method"] == "HEAD"
        if is_head:  # what GET answers, without the body
            scope = {**scope, "method": "GET"}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[0] = message["status"]
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._checked(scope, receive, told)
        finally:
            self._metrics.request(self._route_of(scope["path"]), statuses[0], time.perf_counter() - begin)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/v1/") and not self._keys.allow(scope):
            await _refuse(
                send, 401, "no_key", "send a valid API key in the header X-API-Key", (b"www-authenticate", b"Bearer")
            )
            return
        reason = _other_form(scope)
        if reason:
            await _refuse(send, 415, "unsupported_body", reason, (b"accept-encoding", b"identity"))
            return
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self._limits.request_seconds)
        except TimeoutError:
            await _refuse(send, 408, "slow_body", f"the body did not come within {self._limits.request_seconds:g} s")
            return
        if body is None:
            most = self._limits.max_body_bytes
            await _refuse(send, 413, "large_body", f"the body is larger than {most} bytes; send fewer texts at once")
            return
        if _takes_body(scope) and not _is_utf8(body):
            await _refuse(send, 400, "not_json", "the body is not JSON, which is UTF-8; this is another encoding")
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read the body, as far as it is allowed; None for a larger one."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._limits.max_body_bytes:
            return None
        body, is_more = bytearray(), True
        while is_more:
            message = await receive()
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
            if len(body) > self._limits.max_body_bytes:
                return None
        return bytes(body)


def _takes_body(scope: Scope) -> bool:
    path = str(scope["path"])
    return str(scope["method"]) == "POST" and path.startswith("/v1/") and path != "/v1/models"


def _other_form(scope: Scope) -> str:
    """Say what hinders a body from being read; empty where nothing does. JSON is UTF-8 (RFC 8259, section 8.1)."""
    if not _takes_body(scope):
        return ""
    headers = dict(scope["headers"])
    packing = headers.get(b"content-encoding", b"identity").decode("latin-1").strip()
    if packing.lower() not in ("identity", ""):
        return f"the body is packed (Content-Encoding: {packing[:50]}); send it as it is"
    told = headers.get(b"content-type", b"").decode("latin-1")
    if not told.strip():
        return "the request has no content type; send Content-Type: application/json"
    read = Header()
    read["content-type"] = told
    kind = read.get_content_type()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        return f"the content type is {told[:50]}; send Content-Type: application/json"
    charset = read.get_content_charset("utf-8")
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        return f"the charset is {charset[:50]}; JSON is UTF-8"
    return ""


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in body[:4]  # UTF-16 or UTF-32 without a mark


async def _refuse(send: Send, status: int, code: str, message: str, *more: tuple[bytes, bytes]) -> None:
    content = json.dumps(problem(code, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *more]
    headers.append((b"connection", b"close"))  # what is left of a large body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
