"""The inbox: text of new languages that somebody put into the bucket.

    <LTSFT_BUCKET>/<project>/inbox/<code>/<any name>.txt[.gz]            raw text, one file or several
    <LTSFT_BUCKET>/<project>/inbox/<code>/<target task>.test.conllu[.gz] test data, if there are any
    <LTSFT_BUCKET>/<project>/inbox/<code>/language.json                  {"name": "...", "script": "Latn"}, if wanted
    <LTSFT_BUCKET>/<project>/inbox.json                                  what was noticed; written here alone

A language is known by the files that were noticed (their names, sizes and etags), and is from then on a language of the
project, as if it stood in the project file; one that does stand there is not taken from the inbox. Noticing is a
conditional put of ``inbox.json``, so that of two watchers one notices. A name is recorded as announced only after its
event was sent, with an id that is the same each time: killed in between, the next watcher sends the same event again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from ltsft.config import NAME_RULE, is_name
from ltsft.data import most_used_script
from ltsft.errors import ConflictError, ServiceError
from ltsft.project import Language, Project
from tasks.storage import Bucket, Entry

REGISTER = "inbox.json"
_SAMPLE_BYTES = 1 << 16
_NAMESPACE = uuid.UUID("5d1f8c9e-2f5c-4a53-9d2c-3f6f0f0f7a11")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """A language in the inbox.

    Attributes:
        code: name of its folder.
        name: for people.
        script: ISO 15924.
        text: addresses of its raw text.
        test: addresses of its test data by target task.
        fingerprint: changes when a file is added, removed or replaced.
        announced: fingerprint for which an event was sent.
    """

    code: str
    name: str
    script: str
    text: tuple[str, ...]
    test: Mapping[str, tuple[str, ...]]
    fingerprint: str
    announced: str = ""

    def as_language(self) -> dict[str, Any]:
        """Give the language as a project file has it."""
        return {"name": self.name, "script": self.script, "text": [f"text:{address}" for address in self.text]}

    def fault(self) -> str:
        """Say why it can be no language of a project, which would stop every flow of it; nothing if it can."""
        try:
            Language.model_validate({"code": self.code, **self.as_language()})
        except ValidationError as error:
            wrong = error.errors(include_url=False)
            return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in wrong)
        return ""

    def event_id(self, project: str) -> uuid.UUID:
        """Give the id of the event that tells of this very state of the language."""
        return uuid.uuid5(_NAMESPACE, f"{project} {self.code} {self.fingerprint}")


def inbox_overrides(project: Project, bucket: Bucket) -> tuple[str, ...]:
    """Give what the languages of the inbox add to a project, as overrides of its file."""
    arrivals, _ = read_register(bucket)
    found = []
    for arrival in arrivals.values():
        if arrival.code in project.languages:
            continue
        if fault := arrival.fault():
            _LOG.warning("inbox/%s is left: %s", arrival.code, fault)
            continue
        language = arrival.as_language()
        found.append(f"languages.{arrival.code}={json.dumps(language)}")
        for target_task, addresses in arrival.test.items():
            if target_task in project.target_tasks:
                test = json.dumps([f"conllu:{address}" for address in addresses])
                found.append(f"target_tasks.{target_task}.test.{arrival.code}={test}")
    return tuple(found)


def notice(bucket: Bucket, *, known: Iterable[str], quiet_seconds: float) -> list[Arrival]:
    """Look into the inbox, record what is new, and give what has not been announced yet.

    Args:
        bucket: of the project.
        known: codes that stand in the project file.
        quiet_seconds: a language counts as uploaded when its newest file is so old.
    """
    while True:
        arrivals, etag = read_register(bucket)
        seen = dict(arrivals)
        for code, entries in _languages(bucket).items():
            if code in known:
                _LOG.warning("inbox/%s is left: %s stands in the project file with text of its own", code, code)
                continue
            fingerprint = _fingerprint(entries)
            age = datetime.now(UTC) - max(entry.modified for entry in entries)
            is_new = code not in seen or seen[code].fingerprint != fingerprint
            if is_new and age >= timedelta(seconds=quiet_seconds):
                arrival = _read(bucket, code, entries, fingerprint)
                if arrival is not None:
                    before = seen[code].announced if code in seen else ""
                    seen[code] = replace(arrival, announced=before)
        if seen == arrivals or _write(bucket, seen, etag):
            return [arrival for arrival in seen.values() if arrival.announced != arrival.fingerprint]


def mark_announced(bucket: Bucket, arrival: Arrival) -> None:
    """Record that the event of an arrival was sent."""
    while True:
        arrivals, etag = read_register(bucket)
        if arrival.code not in arrivals:
            return
        arrivals[arrival.code] = replace(arrivals[arrival.code], announced=arrival.fingerprint)
        if _write(bucket, arrivals, etag):
            return


def read_register(bucket: Bucket) -> tuple[dict[str, Arrival], str | None]:
    """Read what was noticed, and the version of the record.

    Raises:
        ServiceError: the record is not readable, or S3 cannot be reached.
    """
    stored = bucket.get(REGISTER)
    if stored is None:
        return {}, None
    try:
        rows: dict[str, dict[str, Any]] = json.loads(stored.data)
        found = {code: Arrival(**_tuples(row)) for code, row in rows.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{bucket.location}/{REGISTER} is not readable ({error}); remove it, and all languages of the inbox are "
            "noticed anew (what is up to date is not made again)"
        ) from error
    return found, stored.etag


def _write(bucket: Bucket, arrivals: Mapping[str, Arrival], etag: str | None) -> bool:
    """Write the record; say whether it was still as it had been read."""
    data = json.dumps({code: asdict(arrival) for code, arrival in sorted(arrivals.items())}, indent=1).encode()
    try:
        bucket.put(REGISTER, data, if_absent=etag is None, if_match=etag)
    except ConflictError:
        return False
    return True


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    test = {name: tuple(addresses) for name, addresses in row["test"].items()}
    return {**row, "text": tuple(row["text"]), "test": test}


def _languages(bucket: Bucket) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in bucket.entries("inbox"):
        code, _, name = entry.name.removeprefix("inbox/").partition("/")
        if name and not name.endswith("/"):
            found[code].append(entry)
    for code in [code for code in found if not is_name(code)]:
        _LOG.warning("inbox/%s is left: allowed are %s", code, NAME_RULE)
        del found[code]
    return dict(found)


def _fingerprint(entries: Iterable[Entry]) -> str:
    rows = sorted((entry.name, entry.size_bytes, entry.etag) for entry in entries)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _read(bucket: Bucket, code: str, entries: Iterable[Entry], fingerprint: str) -> Arrival | None:
    text: list[str] = []
    test: dict[str, list[str]] = defaultdict(list)
    facts: dict[str, Any] = {}
    for entry in entries:
        name = PurePosixPath(entry.name).name
        address = f"{bucket.location}/{entry.name}"
        if name == "language.json":
            facts = _facts(bucket, entry.name)
        elif match := re.fullmatch(r"([^.]+)\.test\.conllu(\.gz)?", name):
            test[match[1]].append(address)
        elif name.endswith((".txt", ".txt.gz")):
            text.append(address)
        else:
            allowed = "*.txt, *.txt.gz, <target task>.test.conllu[.gz], language.json"
            _LOG.warning("%s is left: allowed are %s", address, allowed)
    if not text:
        _LOG.warning("inbox/%s has no *.txt or *.txt.gz yet", code)
        return None
    try:
        script = facts.get("script") or _script(bucket, text[0].removeprefix(f"{bucket.location}/"))
    except zlib.error as error:
        _LOG.warning("inbox/%s is left: %s is no whole gzip file: %s", code, text[0], error)
        return None
    name = str(facts.get("name") or code)
    tests = {target: tuple(sorted(addresses)) for target, addresses in test.items()}
    arrival = Arrival(code, name, str(script), tuple(sorted(text)), tests, fingerprint)
    if fault := arrival.fault():
        _LOG.warning("inbox/%s is left: %s", code, fault)
        return None
    return arrival


def _facts(bucket: Bucket, name: str) -> dict[str, Any]:
    stored = bucket.get(name)
    try:
        facts = json.loads(stored.data) if stored is not None else {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        _LOG.warning('%s/%s is left: it must be {"name": "...", "script": "Latn"}', bucket.location, name)
        return {}
    return facts


def _script(bucket: Bucket, name: str) -> str:
    """Tell the script from the beginning of a text."""
    sample = bucket.head(name, _SAMPLE_BYTES)
    if sample.startswith(b"\x1f\x8b"):
        sample = zlib.decompressobj(wbits=31).decompress(sample, _SAMPLE_BYTES)
    return most_used_script(sample.decode("utf-8", errors="ignore"))
