"""A release bundle: everything that is released, in a folder, so that a server can start while the registry is away.

    releases.json        which version of what is live, with its composition; written last and by rename
    sfts/<sha256>/       the SFT folders, by the hash of their tensors

A server keeps one up to date as its cache. `ltsft export ... --to bundle` makes one to ship with an image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ltsft.atomic import flush_folder, fresh_folder, write_whole
from ltsft.errors import ReleaseError, ServiceError
from ltsft.release import ComposedPart, Release, ReleaseSource, Slot, check_part, parse_composition

__all__ = ["Bundle"]

_INDEX = "releases.json"
_SFTS = "sfts"


class Bundle:
    """A folder of releases; it is a source of them, as the registry is.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def exists(self) -> bool:
        """Whether there is a whole bundle."""
        return (self.folder / _INDEX).is_file()

    def live(self) -> Mapping[Slot, Release]:
        """Give what was released when the bundle was written.

        Raises:
            ServiceError: there is no bundle.
            ReleaseError: it is damaged.
        """
        file = self.folder / _INDEX
        try:
            rows = json.loads(file.read_bytes())
            return {release.slot: release for release in (_parsed(row, file) for row in rows)}
        except OSError as error:
            raise ServiceError(f"there is no release bundle in {self.folder}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"{file} is damaged: {error}; export the bundle again") from error

    def fetch(self, part: ComposedPart) -> Path:
        """Give the folder of an SFT.

        Raises:
            ServiceError: the bundle does not have it.
        """
        folder = self.folder / _SFTS / part.sha256
        if not folder.is_dir():
            raise ServiceError(f"the release bundle {self.folder} lacks {part.subject} ({part.sha256})")
        return folder

    def write(self, releases: Iterable[Release], source: ReleaseSource) -> None:
        """Make the bundle hold these releases and nothing else; a reader sees the old bundle or the new one.

        Args:
            releases: what is live.
            source: where the SFTs are that the bundle does not have yet.

        Raises:
            ServiceError: the source is away.
            ReleaseError: an SFT is not the one that was released.
        """
        found = sorted(releases, key=lambda release: release.slot)
        parts = {part.sha256: part for release in found for part in release.composition.parts}
        (self.folder / _SFTS).mkdir(parents=True, exist_ok=True)
        for part in parts.values():
            self._add(part, source)
        index = self.folder / _INDEX
        text = json.dumps([_row(release) for release in found], indent=2, sort_keys=True)
        write_whole(index, f"{text}\n".encode())
        flush_folder(self.folder)
        for folder in (self.folder / _SFTS).iterdir():
            if folder.name not in parts:
                shutil.rmtree(folder, ignore_errors=True)

    def _add(self, part: ComposedPart, source: ReleaseSource) -> None:
        target = self.folder / _SFTS / part.sha256
        if target.is_dir():
            return
        origin = source.fetch(part)
        check_part(part, origin)
        with fresh_folder(target) as fresh:
            for file in origin.iterdir():
                if file.is_file():
                    shutil.copyfile(file, fresh / file.name)
            fresh.replace(target)


def _row(release: Release) -> dict[str, Any]:
    return {
        "version": release.version,
        "since": release.since.isoformat() if release.since else None,
        "key": release.composition.key,
        "composition": release.composition.model_dump(mode="json"),
    }


def _parsed(row: Mapping[str, Any], file: Path) -> Release:
    since = datetime.fromisoformat(row["since"]) if row["since"] else None
    composition = parse_composition(json.dumps(row["composition"]), place=str(file), key=row["key"])
    return Release(int(row["version"]), composition, since)
