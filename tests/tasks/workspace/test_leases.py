"""Leases in S3: one holder at a time, whatever becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from faulty_proxy import AWAY, FaultyProxy

from ltsft.errors import ConflictError
from tasks import storage
from tasks.storage import Bucket
from tasks.workspace.leases import Lease, leased

pytestmark = pytest.mark.integration
TERM = 1.0


def test_one_waits_until_the_other_gives_back(bucket: Bucket) -> None:
    order: list[str] = []

    def second() -> None:
        with leased(bucket, "k" * 64, "language aa", term_seconds=30):
            order.append("second holds")

    with leased(bucket, "k" * 64, "language aa", term_seconds=30):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first gives back")
    thread.join(timeout=30)

    assert order == ["first gives back", "second holds"]


def test_a_holder_that_is_alive_keeps_its_key_over_many_terms(bucket: Bucket) -> None:
    started = time.monotonic()
    taken: list[float] = []

    def second() -> None:
        with leased(bucket, "key", "language aa", term_seconds=TERM):
            taken.append(time.monotonic() - started)

    with leased(bucket, "key", "language aa", term_seconds=TERM) as lease:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(2.5 * TERM)
        lease.check()
        assert taken == []
    thread.join(timeout=30)
    assert len(taken) == 1


def test_the_key_of_a_holder_that_vanished_is_taken_over_and_it_learns_of_it(bucket: Bucket) -> None:
    vanished = leased(bucket, "key", "language aa", term_seconds=TERM)
    lease: Lease = vanished.__enter__()
    lease._over.set()  # what a kill does: nobody renews

    with leased(bucket, "key", "language aa", term_seconds=TERM) as other:
        other.check()
        with pytest.raises(ConflictError, match="another run may be at work on the same product"):
            lease.check()
    vanished.__exit__(None, None, None)  # gives nothing back that is not its own
    assert b'"free": true' in bucket.get("leases/key.json").data


def test_a_holder_that_cannot_renew_stops_before_its_term_is_over(
    s3: str, bucket: Bucket, at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with FaultyProxy(s3) as proxy:
        at(proxy.url)
        with leased(bucket, "key", "language aa", term_seconds=TERM) as lease:
            lease.check()
            proxy.fault = lambda number, method, path: AWAY
            time.sleep(1.3 * TERM)
            with pytest.raises(ConflictError, match="it could not be renewed"):
                lease.check()


def test_of_many_at_once_never_two_hold(bucket: Bucket) -> None:
    holding, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with leased(bucket, "key", "language aa", term_seconds=2.0):
            with lock:
                holding[0] += 1
                most[0] = max(most[0], holding[0])
            time.sleep(0.05)
            with lock:
                holding[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert most == [1]


def test_the_silence_of_a_holder_counts_from_its_last_renewal_and_not_from_the_first_look(bucket: Bucket) -> None:
    vanished = leased(bucket, "key", "language aa", term_seconds=TERM)
    lease: Lease = vanished.__enter__()
    lease._over.set()  # what a kill does: nobody renews
    time.sleep(1.25 * TERM + 2.5)  # S3 tells whole seconds, and its nodes may differ by a quarter of a term
    before = time.monotonic()

    with leased(bucket, "key", "language aa", term_seconds=TERM) as other:
        waited = time.monotonic() - before
        other.check()
        with pytest.raises(ConflictError):
            lease.check()

    assert waited < TERM, "a whole term would begin with the first look"


def test_a_key_that_was_given_back_is_not_ours_any_more_and_is_given_back_once(bucket: Bucket) -> None:
    with leased(bucket, "key", "language aa", term_seconds=30) as lease:
        lease.release()
        with pytest.raises(ConflictError, match="given back"):
            lease.check()
        with leased(bucket, "key", "language aa", term_seconds=30) as other:
            lease.release()
            other.check()
            assert b'"free": false' in bucket.get("leases/key.json").data
