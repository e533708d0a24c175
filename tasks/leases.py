"""Holding a key across machines: a lease in S3, written by conditional puts.

Whoever wants the key of a product puts an object of that name where none is; whoever finds one waits. The holder writes
it anew every few seconds. A waiter takes over what has stayed the same for a whole term by the waiter's own clock: no
two clocks are compared, and a holder that is alive never looks dead. Taking over replaces the very version that was
watched, so of several waiters one wins.

Why S3 and not Prefect's concurrency limits: the lease guards what lies in S3 (checkpoints, the SFT), so it is away when
they are away and never otherwise; it works for a run from a laptop, without Prefect's server; and it outlives that
server's restart.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ltsft.errors import ConflictError, ServiceError
from tasks.storage import Bucket, Stored

POLL_SECONDS = 2.0
_RENEWALS_IN_A_TERM = 4
_LOG = logging.getLogger(__name__)


class Lease:
    """A lease that is held; `leased` gives it."""

    def __init__(self, bucket: Bucket, key: str, *, term_seconds: float, etag: str, holder: str) -> None:
        self._bucket, self._key, self._term, self._etag, self._holder = bucket, key, term_seconds, etag, holder
        self._renewed_at = time.monotonic()
        self._count = 0
        self._taken = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {key[:12]}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the key is still ours.

        Raises:
            ConflictError: another run has taken over, or may have, because the lease could not be renewed for too long.
        """
        if self._taken or time.monotonic() - self._renewed_at >= self._term:
            raise ConflictError(
                f"the lease of key {self._key} is lost ({'taken over' if self._taken else 'it could not be renewed'}); "
                "another run may be at work on the same product, so this one stops"
            )

    def release(self) -> None:
        """Give the key back; whoever waits goes on at once."""
        self._over.set()
        self._thread.join()
        try:
            if not self._taken:
                self._bucket.put(_name(self._key), _content("", self._count, is_free=True), if_match=self._etag)
        except ServiceError as error:  # it ends by itself after a term
            _LOG.warning("the lease of key %s could not be given back: %s", self._key, error)

    def _keep(self) -> None:
        while not self._over.wait(self._term / _RENEWALS_IN_A_TERM):
            began = time.monotonic()
            try:
                content = _content(self._holder, self._count + 1)
                self._etag = self._bucket.put(_name(self._key), content, if_match=self._etag)
                self._count += 1
                self._renewed_at = began
            except ConflictError:
                self._taken = True
                return
            except ServiceError as error:
                _LOG.warning("the lease of key %s could not be renewed, trying again: %s", self._key, error)


@contextmanager
def leased(bucket: Bucket, key: str, subject: str, *, term_seconds: float) -> Iterator[Lease]:
    """Hold a key; wait while another holds it.

    Args:
        bucket: where leases are.
        key: of a product.
        subject: what it is, for the log line that says what is waited for.
        term_seconds: a holder that is gone for so long has lost the key.
    """
    holder = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    lease = Lease(
        bucket, key, term_seconds=term_seconds, etag=_acquire(bucket, key, subject, holder, term_seconds), holder=holder
    )
    try:
        yield lease
    finally:
        lease.release()


def _acquire(bucket: Bucket, key: str, subject: str, holder: str, term_seconds: float) -> str:
    seen: Stored | None = None
    since = 0.0
    while True:
        found = bucket.get(_name(key))
        now = time.monotonic()
        if found is None or (seen is not None and found.etag != seen.etag):
            since = now
        try:
            if found is None:
                return bucket.put(_name(key), _content(holder, 0), if_absent=True)
            if json.loads(found.data)["free"] or (seen is not None and now - since >= term_seconds):
                return bucket.put(_name(key), _content(holder, 0), if_match=found.etag)
        except ConflictError:  # somebody was quicker
            continue
        if seen is None:
            since = now
            _LOG.warning("%s is being made by another run; waiting for it (key %s)", subject, key)
        seen = found
        time.sleep(min(POLL_SECONDS, term_seconds / 4))


def _name(key: str) -> str:
    return f"leases/{key}.json"


def _content(holder: str, count: int, *, is_free: bool = False) -> bytes:
    return json.dumps({"holder": holder, "renewals": count, "free": is_free, "nonce": uuid.uuid4().hex}).encode()
