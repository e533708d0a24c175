"""Holding a key across machines: a lease in S3, written by conditional puts.

Whoever wants the key of a product puts an object of that name where none is; whoever finds one waits. The holder writes
it anew every few seconds, and gives it back when it is done or has been asked to stop and its checkpoint is safe. A
waiter takes over what was not written for more than a term by the clock of S3, which stamps what it stores and says the
time with each answer, or what has stayed the same for a whole term while the waiter looked. So the silence of a holder
counts from its last renewal, no clock of S3 is compared with one of ours, and a holder that is alive never looks dead.
Taking over replaces the very version that was looked at, so of several waiters one wins.

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
_CLOCKS_DIFFER = 0.25
"""Share of a term by which the clocks of a store of several nodes may differ; a holder stops after a term."""
_ROUNDED_SECONDS = 1.0
"""S3 tells times in whole seconds."""
_LOG = logging.getLogger(__name__)


class Lease:
    """A lease that is held; `leased` gives it."""

    def __init__(self, bucket: Bucket, key: str, *, term_seconds: float, etag: str, holder: str, since: float) -> None:
        self._bucket, self._key, self._term, self._etag, self._holder = bucket, key, term_seconds, etag, holder
        self._renewed_at = since
        self._count = 0
        self._lost = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {key[:12]}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the key is still ours.

        Raises:
            ConflictError: it was given back; or another run has taken over, or may have, because the lease could not be
                renewed for too long.
        """
        lost = self._lost
        if not lost and time.monotonic() - self._renewed_at >= self._term:
            lost = "it could not be renewed"
        if lost:
            raise ConflictError(
                f"the lease of key {self._key} is lost ({lost}); "
                "another run may be at work on the same product, so this one stops"
            )

    def release(self) -> None:
        """Give the key back, once; whoever waits goes on at once."""
        self._over.set()
        self._thread.join()
        if self._lost:
            return
        self._lost = "given back"
        try:
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
                self._lost = "taken over"
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
    etag, since = _acquire(bucket, key, subject, holder, term_seconds)
    lease = Lease(bucket, key, term_seconds=term_seconds, etag=etag, holder=holder, since=since)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(bucket: Bucket, key: str, subject: str, holder: str, term_seconds: float) -> tuple[str, float]:
    """Give the version that makes us the holder, and when we began to write it: it may have taken long."""
    seen: Stored | None = None
    since = 0.0
    while True:
        found = bucket.get(_name(key))
        now = time.monotonic()
        if found is None or seen is None or found.etag != seen.etag:
            since = now
        try:
            if found is None:
                return bucket.put(_name(key), _content(holder, 0), if_absent=True), now
            if json.loads(found.data)["free"] or now - since >= term_seconds or _is_silent(found, term_seconds):
                return bucket.put(_name(key), _content(holder, 0), if_match=found.etag), now
        except ConflictError:  # somebody was quicker
            continue
        if seen is None:
            _LOG.warning("%s is being made by another run; waiting for it (key %s)", subject, key)
        seen = found
        time.sleep(min(POLL_SECONDS, term_seconds / 4))


def _is_silent(found: Stored, term_seconds: float) -> bool:
    """Whether a holder has not renewed for so long that it has stopped, by the clock of S3."""
    return found.age_seconds is not None and found.age_seconds > term_seconds * (1 + _CLOCKS_DIFFER) + _ROUNDED_SECONDS


def _name(key: str) -> str:
    return f"leases/{key}.json"


def _content(holder: str, count: int, *, is_free: bool = False) -> bytes:
    return json.dumps({"holder": holder, "renewals": count, "free": is_free, "nonce": uuid.uuid4().hex}).encode()
