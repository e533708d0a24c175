"""An HTTP proxy that does what networks and servers do on bad days: 503, answers cut short, nobody there."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

UNAVAILABLE, CUT, LOST, AWAY = "503", "cut", "lost", "away"
Fault = Callable[[int, str, str], str | None]
"""Number of the request (from 1), method and path -> what goes wrong, or None."""


class FaultyProxy:
    """Passes requests on to a server, except where `fault` says otherwise; a context manager."""

    def __init__(self, target: str, fault: Fault | None = None) -> None:
        self.target = urlsplit(target)
        self.fault: Fault = fault or (lambda number, method, path: None)
        self.requests: list[tuple[str, str, str | None]] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._pass_on(self)

            def __getattr__(self, name: str) -> object:
                if name.startswith("do_"):
                    return self.handle_any
                raise AttributeError(name)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up

        self._serve: Callable[[int], ThreadingHTTPServer] = lambda port: Server(("127.0.0.1", port), Handler)
        self._is_cut = False
        self._start(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Let nobody listen until `mend`: new connections are refused, and those that are open break."""
        self._is_cut = True
        self.close()

    def mend(self) -> None:
        """Listen again, at the same port."""
        self._start(self._port)
        self._is_cut = False

    def _start(self, port: int) -> None:
        self._server = self._serve(port)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            is_cut = self._is_cut
            fault = AWAY if is_cut else self.fault(len(self.requests) + 1, handler.command, handler.path)
            self.requests.append((handler.command, handler.path, fault))
        if fault == AWAY:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == UNAVAILABLE:
            text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            handler.send_response(503)
            handler.send_header("Content-Length", str(len(text)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(text)
            return
        upstream = http.client.HTTPConnection(str(self.target.hostname), self.target.port, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "connection"}
            upstream.request(handler.command, handler.path, body=body or None, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
        except OSError:
            handler.close_connection = True
            return
        finally:
            upstream.close()
        if fault == LOST:  # done, but nobody is told
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                handler.send_header(name, value)
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == CUT:
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.wfile.write(content)
