"""A server on a real port: what comes slowly or is no HTTP is ended in bounded time, in the shape of every error."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ltsft.serving.service import Service
from ltsft.serving.web import server
from ltsft.serving.web.app import create_app

HEADER_SECONDS = 1.0
FAR = 30.0
"""Of a socket: far more than anything here takes."""
WHOLE = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def address(make_service: Callable[..., Service], shelf: Any) -> Iterator[tuple[str, int]]:
    service = make_service(shelf, header_seconds=HEADER_SECONDS)
    listener = socket.create_server(("127.0.0.1", 0))
    config = server._Config(create_app(service), header_seconds=HEADER_SECONDS, log_config=None, timeout_keep_alive=30)
    running = server._Draining(config, service)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    running.should_exit = True
    thread.join(FAR)
    listener.close()


def answer(connection: socket.socket) -> bytes:
    """Everything that comes until the server closes."""
    found = b""
    while chunk := connection.recv(4096):
        found += chunk
    return found


def drip(connection: socket.socket) -> None:
    """Send a header byte by byte, for as long as somebody takes it."""
    try:
        for _ in range(int(10 * FAR)):
            connection.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nx-slow: "], ids=["nothing", "a part"])
def test_headers_that_do_not_come_end_the_connection(address: tuple[str, int], before: bytes) -> None:
    with socket.create_connection(address, timeout=FAR) as connection:
        connection.sendall(before)
        told = answer(connection)
    assert told.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "slow_headers"


def test_headers_that_drip_are_bounded_as_a_whole_also_of_a_second_request(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=FAR) as connection:
        connection.sendall(WHOLE)
        first = connection.recv(4096)
        assert b'{"status":"alive"}' in first or b'{"status":"alive"}' in connection.recv(4096)
        time.sleep(1.5 * HEADER_SECONDS)  # an open connection that sends nothing is kept
        connection.sendall(WHOLE + b"GET /healthz HTTP/1.1\r\nx-slow: ")
        dripping = threading.Thread(target=drip, args=[connection], daemon=True)
        dripping.start()
        try:
            told = answer(connection)
        except ConnectionResetError:  # what dripped on was not read
            told = b"408"
    assert b"408" in told


def test_what_is_no_http_is_refused_in_the_shape_of_every_error(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=FAR) as connection:
        connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        told = answer(connection)
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_http"


def test_a_head_has_the_headers_of_a_get_and_no_body(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=FAR) as connection:
        connection.sendall(WHOLE.replace(b"GET", b"HEAD").replace(b"host: x", b"host: x\r\nconnection: close"))
        head, _, body = answer(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 18" in head
    assert body == b""
