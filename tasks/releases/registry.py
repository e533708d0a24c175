"""The registry: which versions of a (language, target task) there are, and which one is live.

A (language, target task) is a registered model in MLflow, ``<project>.<target task>.<language>``; a version is a
composition. Two aliases say what is what:

    candidate   the newest version that was put forward
    champion    the version that servers answer with

Moving an alias is one write of one row in MLflow's database: readers see the old version or the new one. The record of
who moved it, when and why is a run of the kind ``promotion`` or ``rollback`` in the project's experiment.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltsft.errors import ReleaseError, StoredFileError
from ltsft.release import ComposedPart, Composition, Release, Slot, UnreadableRelease, parse_composition
from tasks.tracking import KIND, SUBJECT, Tracker, from_milliseconds, join_text, patiently, split_text

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from tasks.workspace import Workspace

CANDIDATE, CHAMPION = "candidate", "champion"
PROJECT, LANGUAGE, TARGET_TASK = "ltsft.project", "ltsft.language", "ltsft.target_task"
COMPOSITION, RECIPE = "ltsft.composition", "ltsft.recipe"
VERDICT, ROLLED_BACK = "ltsft.verdict", "ltsft.rolled_back"
FROM_VERSION, TO_VERSION, REASON = "ltsft.from_version", "ltsft.to_version", "ltsft.reason"
_LOG = logging.getLogger(__name__)
PROMOTION, ROLLBACK, CANDIDACY = "promotion", "rollback", "candidacy"
PASSED = "passed"
"""Value of the tag of a verdict, where no gate that decides said no."""
CELL_RUN, SEED, TEST, SCORE = "ltsft.cell_run", "ltsft.seed", "ltsft.test", "ltsft.score"
"""Tags of a version: the cell that scored it, the seed of its task SFT, its test set, and its own score there."""
MODEL = "model"
"""Artifact of a promotion: the pyfunc model, which is the recipe and the code that composes it."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        number: of the version, from 1.
        composition: what it is.
        tags: all of its tags.
        created: when it was registered (UTC).
    """

    name: str
    number: int
    composition: Composition
    tags: Mapping[str, str]
    created: datetime

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` and `mlflow models serve` take."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True)
class Event:
    """A move of the alias ``champion``: a promotion or a rollback.

    Attributes:
        run_id: the run that records it.
        subject: of the release, see `release_subject`.
        kind: "promotion" or "rollback".
        before: the version that was live; None where there was none.
        after: the version that is live since; None where the release was withdrawn.
        who: the user.
        reason: why, in words; empty where none was given.
        when: when it was done (UTC); for one that was cut off, when it was begun.
        is_finished: whether the record was closed.
    """

    run_id: str
    subject: str
    kind: str
    before: int | None
    after: int | None
    who: str
    reason: str
    when: datetime
    is_finished: bool


class Registry:
    """The releases of one project.

    Args:
        tracker: the project's record.
        project: its name.
    """

    def __init__(self, tracker: Tracker, project: str) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._project = project
        self._versions: dict[tuple[str, int], Version] = {}

    def name_of(self, slot: Slot) -> str:
        """Give the name of the registered model."""
        return f"{self._project}.{slot.target_task}.{slot.language}"

    def live(self) -> dict[Slot, Release | UnreadableRelease]:
        """Give what is live: one query, and one more for each version that was not seen before.

        Raises:
            ServiceError: MLflow is away.
        """
        found: dict[Slot, Release | UnreadableRelease] = {}
        for slot, champion, _ in self.aliases():
            if champion is not None:
                read = self.readable(slot, champion)
                found[slot] = Release(read.number, read.composition) if isinstance(read, Version) else read
        return found

    def aliases(self) -> list[tuple[Slot, int | None, int | None]]:
        """List every (language, target task) with its champion and its candidate."""
        found = [(self._slot(model.name), model) for model in self._models()]
        return [(s, _number_of(model, CHAMPION), _number_of(model, CANDIDATE)) for s, model in found if s is not None]

    def champion(self, slot: Slot) -> int | None:
        """Give the live version of a (language, target task), or None."""
        return self._alias(slot, CHAMPION)

    def candidate(self, slot: Slot) -> int | None:
        """Give the version that was put forward last, or None."""
        return self._alias(slot, CANDIDATE)

    def version(self, slot: Slot, number: int) -> Version:
        """Give a version; what it is does not change, so it is asked for once (its tags may be older)."""
        name = self.name_of(slot)
        if (name, number) not in self._versions:
            with self._tracker.service(f"read version {number} of {name}"):
                found = self._client.get_model_version(name, str(number))
            self._versions[name, number] = _version(found)
        return self._versions[name, number]

    def readable(self, slot: Slot, number: int) -> Version | UnreadableRelease:
        """Give a version, or say what is wrong with it.

        Raises:
            ServiceError: MLflow is away.
        """
        try:
            return self.version(slot, number)
        except (StoredFileError, ReleaseError) as error:
            return UnreadableRelease(number, str(error))

    def versions(self, slot: Slot) -> list[Version]:
        """List all versions, oldest first; one that is damaged is left out, and named in the log."""
        with self._tracker.service(f"list the versions of {self.name_of(slot)}"):
            found = self._all(partial(self._client.search_model_versions, f"name = '{self.name_of(slot)}'"))
        whole = []
        for each in found:
            try:
                whole.append(_version(each))
            except ReleaseError as error:
                _LOG.warning("%s", error)
        return sorted(whole, key=lambda version: version.number)

    def find(self, composition: Composition) -> Version | None:
        """Give the version that is this very composition, or None."""
        found = [v for v in self.versions(composition.slot) if v.composition.key == composition.key]
        return found[0] if found else None

    def register(self, composition: Composition, *, run_id: str, tags: Mapping[str, str]) -> Version:
        """Make a version of a composition unless there is one; the artifact ``model`` of the run is its source.

        The caller holds the lock of the (language, target task).
        """
        existing = self.find(composition)
        if existing is not None:
            return existing
        slot, name = composition.slot, self.name_of(composition.slot)
        with self._tracker.service(f"register a version of {name}"):
            self._create_model(slot)
            uri = self._client.get_run(run_id).info.artifact_uri
            recipe = split_text(RECIPE, composition.to_json())
            all_tags = {**tags, **recipe, COMPOSITION: composition.key}
            create = partial(self._client.create_model_version, name, f"{uri}/{MODEL}", run_id=run_id, tags=all_tags)
            return _version(patiently(create))

    def describe(self, version: Version, text: str) -> None:
        """Set what the page of a version shows."""
        with self._tracker.service(f"describe version {version.number} of {version.name}"):
            patiently(partial(self._client.update_model_version, version.name, str(version.number), description=text))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._tracker.service(f"tag version {version.number} of {version.name}"):
            for name, value in tags.items():
                patiently(partial(self._client.set_model_version_tag, version.name, str(version.number), name, value))

    def is_rolled_back(self, version: Version) -> bool:
        """Say whether a version was live and was taken back."""
        with self._tracker.service(f"read version {version.number} of {version.name}"):
            return ROLLED_BACK in self._client.get_model_version(version.name, str(version.number)).tags

    def forget_rollback(self, version: Version) -> None:
        """Let a version that was rolled back be released again."""
        if not self.is_rolled_back(version):
            return
        with self._tracker.service(f"untag version {version.number} of {version.name}"):
            patiently(partial(self._client.delete_model_version_tag, version.name, str(version.number), ROLLED_BACK))

    def set_alias(self, slot: Slot, alias: str, number: int | None) -> None:
        """Point an alias at a version, or take it away: one write."""
        name = self.name_of(slot)
        with self._tracker.service(f"move the alias {alias} of {name}"):
            if number is None:
                patiently(partial(self._client.delete_registered_model_alias, name, alias))
            else:
                patiently(partial(self._client.set_registered_model_alias, name, alias, str(number)))

    def events(self, slot: Slot | None = None) -> list[Event]:
        """List the moves of the alias ``champion``, oldest first; those that were cut off are among them."""
        where = f"tags.`{TO_VERSION}` != ''"
        if slot is not None:
            where += f" and tags.`{SUBJECT}` = '{release_subject(slot)}'"
        found = [_event(run) for run in self._tracker.search(where) if run.info.status != "FAILED"]
        return sorted((event for event in found if event is not None), key=lambda event: event.when)

    def fetch(self, part: ComposedPart) -> Path:
        """Give the folder of an SFT of a composition."""
        return self._tracker.download(part.run_id, "sft")

    def _alias(self, slot: Slot, alias: str) -> int | None:
        name = self.name_of(slot)
        with self._tracker.service(f"read {name}"):
            found = self._client.search_registered_models(f"name = '{name}'", max_results=1)
        return _number_of(found[0], alias) if found else None

    def _models(self) -> list[RegisteredModel]:
        where = f"name LIKE '{self._project}.%'"
        with self._tracker.service("list what is released"):
            return self._all(partial(self._client.search_registered_models, where))

    def _slot(self, name: str) -> Slot | None:
        """Read what a registered model is for from its name: it stays, also where somebody removed a tag."""
        project, *rest = name.rsplit(".", 2)
        return Slot(rest[1], rest[0]) if project == self._project and len(rest) == 2 else None

    def _all(self, search: Any) -> list[Any]:
        found, token = [], None
        while True:
            page = search(page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _create_model(self, slot: Slot) -> None:
        from mlflow.exceptions import MlflowException

        tags = {PROJECT: self._project, LANGUAGE: slot.language, TARGET_TASK: slot.target_task}
        try:
            patiently(partial(self._client.create_registered_model, self.name_of(slot), tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def open_registry(workspace: Workspace) -> Registry:
    """Open the registry of a project."""
    return Registry(workspace.tracker, workspace.project.name)


def release_subject(slot: Slot) -> str:
    """Name the releases of a (language, target task), the same over all versions."""
    return f"release {slot}"


def version_before(events: Sequence[Event], champion: int) -> int | None:
    """Give the version that was live before the champion was promoted; None where it was the first.

    Rolling back twice goes back two versions: what a rollback left behind is not what was before it.
    """
    for event in reversed(events):
        if event.kind == PROMOTION and event.after == champion:
            return event.before
    return None


def _number_of(model: RegisteredModel, alias: str) -> int | None:
    number = model.aliases.get(alias)
    return int(number) if number is not None else None


def _version(found: ModelVersion) -> Version:
    tags = dict(found.tags)
    place = f"version {found.version} of {found.name}"
    if COMPOSITION not in tags:
        raise ReleaseError(f"{place} was not registered by ltsft promote: it has no tag {COMPOSITION}; delete it")
    return Version(
        name=found.name,
        number=int(found.version),
        composition=parse_composition(join_text(RECIPE, tags), place=place, key=tags[COMPOSITION]),
        tags=tags,
        created=from_milliseconds(found.creation_timestamp),
    )


def _event(run: Run) -> Event | None:
    """Read a move; None, and a line in the log, where somebody changed what is on record of it."""
    tags = run.data.tags
    numbers = [tags.get(name) for name in (FROM_VERSION, TO_VERSION)]
    if SUBJECT not in tags or KIND not in tags or not all(re.fullmatch(r"\d+|none", n or "none") for n in numbers):
        _LOG.warning("run %s is no record of a release: %s, %s, %s", run.info.run_id, SUBJECT, KIND, numbers)
        return None
    before, after = (None if number in (None, "none") else int(number) for number in numbers)
    return Event(
        run_id=run.info.run_id,
        subject=tags[SUBJECT],
        kind=tags[KIND],
        before=before,
        after=after,
        who=tags.get("mlflow.user", ""),
        reason=tags.get(REASON, ""),
        when=from_milliseconds(run.info.end_time or run.info.start_time),
        is_finished=run.info.status == "FINISHED",
    )
