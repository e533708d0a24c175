"""Traces: what reaches a collector over OTLP/HTTP, and what must not be in it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from ltsft.serving.web.guard import ApiKeys
from ltsft.serving.web.server import add_traces

KEY = "a-key-of-sixteen-or-more"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[queue.Queue[tuple[str, bytes]]]:
    """A collector on a port of its own, to which this process is pointed; gives (path, body) of what it is sent."""
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield got
    server.shutdown()
    thread.join()


def test_requests_are_traced_by_route_and_status_without_keys_texts_or_probes(
    make_service: Callable[..., Service], shelf: Any, collector: queue.Queue[tuple[str, bytes]]
) -> None:
    app = create_app(make_service(shelf), keys=ApiKeys([KEY]))
    assert add_traces(app)
    client = TestClient(app)
    headers = {"X-API-Key": KEY}
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/pos/aa", json={"text": "bako dedas ."}, headers=headers).status_code == 200
    assert client.post("/v1/pos/zz", json={"text": "bako"}, headers=headers).status_code == 404

    spans: dict[str, Any] = {}
    while len(spans) < 2:
        path, body = collector.get(timeout=20)
        assert path == "/v1/traces"
        assert KEY.encode() not in body
        assert b"dedas" not in body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert named["service.name"] == "ltsft-serve"
            found = [span for scope in resource.scope_spans for span in scope.spans if span.kind == 2]  # of a server
            for span in found:
                told = {a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes}
                assert "readyz" not in str(told)
                spans[told.get("http.status_code") or told["http.response.status_code"]] = (span.name, told)
    assert set(spans) == {"200", "404"}
    name, told = spans["200"]
    assert name == "POST /v1/{target_task}/{language}"
    assert told["http.route"] == "/v1/{target_task}/{language}"


def test_without_an_endpoint_nothing_is_traced(
    make_service: Callable[..., Service], shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not add_traces(create_app(make_service(shelf)))
