"""Running the service: uvicorn, a graceful end on SIGTERM, and traces when they are configured."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from http import HTTPStatus
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ltsft.errors import ConfigError
from ltsft.serving.service import Service
from ltsft.serving.web.guard import problem

__all__ = ["add_traces", "serve_app"]

_LOG = logging.getLogger(__name__)


class _Config(uvicorn.Config):
    """What uvicorn is told, and how long the headers of a request may take."""

    def __init__(self, app: FastAPI, *, header_seconds: float, **more: Any) -> None:
        super().__init__(app, http=_Bounded, **more)
        self.header_seconds = header_seconds


class _Bounded(H11Protocol):
    """HTTP whose request headers come within a time; uvicorn itself waits for them for ever."""

    config: _Config
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came; the next request of a connection has its own time from its first byte on."""
        if self.conn.their_state is h11.IDLE and self._late is None:
            self._wait()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Go on with the connection, where a part of the next request may have come already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.config.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            return
        self._refuse(408, "slow_headers", f"the headers did not come within {self.config.header_seconds:g} s")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the shape of every error."""
        self._refuse(400, "not_http", "this is no valid HTTP request")

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps(problem(code, message))
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", body]).encode())
        self.transport.close()


class _Draining(uvicorn.Server):
    """A server that, on a signal, first says that it is not ready, goes on for a while, and then ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._is_asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once."""
        if self._is_asked:
            super().handle_exit(sig, frame)
            return
        self._is_asked = True
        self._service.drain()
        _LOG.info("asked to stop: not ready any more, still answering for %g s", self._service.limits.drain_seconds)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._service.limits.drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def serve_app(app: FastAPI, service: Service, *, host: str, port: int) -> None:
    """Answer requests until a signal comes; what is in flight then is answered.

    Args:
        app: made by `create_app`.
        service: started; closed at the end.
        host: address to listen on.
        port: to listen on; 0 takes a free one.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    config = _Config(
        app,
        header_seconds=service.limits.header_seconds,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(service.limits.stop_seconds),
        server_header=False,
    )
    try:
        listener = socket.create_server((host, port), reuse_port=False)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
    shown = listener.getsockname()
    _LOG.warning("answering on http://%s:%s (%d releases)", shown[0], shown[1], len(service.live))
    try:
        _Draining(config, service).run(sockets=[listener])
    finally:
        service.close()
        listener.close()


def add_traces(app: FastAPI) -> bool:
    """Send traces to where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says; says whether it is set.

    Raises:
        ConfigError: it is set, and the packages are missing.
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error.name} is not installed; pip install 'ltsft[otel]'"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "ltsft-serve")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls="healthz,readyz,metrics")
    return True
