"""What tests of the server share: a shelf of releases over a tiny base, with SFTs made from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ltsft.base import Base, load_base, parameter_roles
from ltsft.errors import ServiceError
from ltsft.objectives.registry import OBJECTIVES
from ltsft.release.release import ComposedBase, ComposedPart, Composition, Release, Slot
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics
from ltsft.serving.service import Service
from ltsft.sft.files import read_manifest, save_sft
from ltsft.sft.sft import SFT, Diff

LABELS = {"pos": ("NOUN", "VERB", "ADJ", "PUNCT"), "coarse": ("CONTENT", "OTHER")}
KINDS = {
    "dp": ("dp", ("nsubj", "obj", "root", "punct")),
    "ner": ("ner", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "mood": ("classification", ("good", "bad", "neither")),
    "nli": ("classification", ("entailment", "neutral", "contradiction")),
    "qa": ("qa", ()),
}
"""Target tasks of other kinds: (objective, labels)."""
LANGUAGES = ("aa", "bb", "cc")


class Shelf:
    """A source of releases in memory: what is live, and the folders of the SFTs by hash."""

    def __init__(self) -> None:
        self.released: dict[Slot, Release] = {}
        self.folders: dict[str, Path] = {}
        self.is_away = False

    def live(self) -> dict[Slot, Release]:
        if self.is_away:
            raise ServiceError("the shelf is away")
        return dict(self.released)

    def fetch(self, part: ComposedPart) -> Path:
        if self.is_away:
            raise ServiceError("the shelf is away")
        return self.folders[part.sha256]

    def put(self, composition: Composition, version: int) -> None:
        self.released[composition.slot] = Release(version, composition)


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture(scope="session")
def make_part(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, ComposedPart]]:
    """Save an SFT of random diffs, strong enough to change answers."""
    folder = tmp_path_factory.mktemp("sfts")

    def make(kind: str, subject: str, *, seed: int) -> tuple[Path, ComposedPart]:
        objective, labels = KINDS.get(subject, ("pos", LABELS.get(subject, ())))
        generator = torch.Generator().manual_seed(seed)
        diffs = {}
        for name, parameter in base.token_classifier(("A", "B"), seed=0).base_model.named_parameters():
            support = torch.nonzero(torch.rand(parameter.numel(), generator=generator) < 0.2).flatten().int()
            values = 0.3 * torch.randn(len(support), generator=generator)
            diffs[name] = Diff(indices=support, values=values, shape=tuple(parameter.shape))
        head = {}
        if kind == "task":
            model = OBJECTIVES[objective].new_model(base, labels, seed=0)
            found = parameter_roles(model).head
            head = {name: torch.randn(p.shape, generator=generator) for name, p in sorted(found.items())}
        sft = SFT(
            kind=kind,  # type: ignore[arg-type]
            subject=subject,
            base=base.ref,
            diffs=diffs,
            head=head,
            labels=labels,
            maskable=sum(diff.size for diff in diffs.values()),
        )
        path = save_sft(sft, folder / f"{kind}-{subject}-{seed}")
        sha256 = read_manifest(path)["tensor_file"]["sha256"]
        part = ComposedPart(
            kind=sft.kind, subject=f"{kind} {subject}", key=f"{seed:064x}", sha256=sha256, run_id=f"run{seed}"
        )
        return path, part

    return make


@pytest.fixture(scope="session")
def make_composition(base: Base) -> Callable[..., Composition]:
    def make(language: str, target_task: str, *parts: ComposedPart, max_length: int = 24) -> Composition:
        return Composition(
            language=language,
            target_task=target_task,
            objective=KINDS.get(target_task, ("pos", ()))[0],
            labels=KINDS[target_task][1] if target_task in KINDS else LABELS[target_task],
            takes_pairs=target_task == "nli",
            max_length=max_length,
            base=ComposedBase.model_validate({**base.ref.identity, "location": "base"}),
            parts=parts,
        )

    return make


@pytest.fixture(scope="session")
def stock(
    make_part: Callable[..., tuple[Path, ComposedPart]], make_composition: Callable[..., Composition]
) -> tuple[dict[tuple[str, str, int], Composition], dict[str, Path]]:
    """Two versions of every (language, target task): compositions, and the folders of their SFTs."""
    languages = {code: make_part("language", code, seed=i) for i, code in enumerate(LANGUAGES, 1)}
    targets = {
        (name, version): make_part("task", name, seed=10 * i + version)
        for i, name in enumerate(LABELS, 1)
        for version in (1, 2)
    }
    folders = {part.sha256: path for path, part in (*languages.values(), *targets.values())}
    compositions = {
        (code, name, version): make_composition(code, name, languages[code][1], targets[name, version][1])
        for code in LANGUAGES
        for name in LABELS
        for version in (1, 2)
    }
    return compositions, folders


@pytest.fixture
def shelf(stock: tuple[dict[tuple[str, str, int], Composition], dict[str, Path]]) -> Shelf:
    """Version 1 of everything is live."""
    found = Shelf()
    compositions, found.folders = stock[0], dict(stock[1])
    for (_, _, version), composition in compositions.items():
        if version == 1:
            found.put(composition, version)
    return found


@pytest.fixture(scope="session")
def kinds(
    make_part: Callable[..., tuple[Path, ComposedPart]], make_composition: Callable[..., Composition]
) -> tuple[list[Composition], dict[str, Path]]:
    """A composition of every other kind of target task in two languages, and the folders of their SFTs."""
    languages = {code: make_part("language", code, seed=i) for i, code in enumerate(LANGUAGES[:2], 1)}
    targets = {name: make_part("task", name, seed=100 + i) for i, name in enumerate(KINDS)}
    folders = {part.sha256: path for path, part in (*languages.values(), *targets.values())}
    made = [
        make_composition(code, name, languages[code][1], targets[name][1], max_length=32)
        for code in languages
        for name in KINDS
    ]
    return made, folders


@pytest.fixture
def full_shelf(shelf: Shelf, kinds: tuple[list[Composition], dict[str, Path]]) -> Shelf:
    """Version 1 of target tasks of every kind is live."""
    for composition in kinds[0]:
        shelf.put(composition, 1)
    shelf.folders |= kinds[1]
    return shelf


@pytest.fixture
def engine(base: Base) -> Engine:
    return Engine(base, limits=Limits(), is_compiled=True)


@pytest.fixture
def make_service(base: Base) -> Iterator[Callable[..., Service]]:
    """Make and start a service; it is closed at the end of the test."""
    made: list[Service] = []

    def make(source: Shelf, *, bundle: object = None, **limits: object) -> Service:
        bounds = Limits.model_validate({"refresh_seconds": 3600, "stop_seconds": 5, **limits})
        metrics = Metrics()
        engine = Engine(base, limits=bounds, on_switch=metrics.switch)
        service = Service(engine, source, limits=bounds, metrics=metrics, bundle=bundle)  # type: ignore[arg-type]
        made.append(service)
        service.start()
        return service

    yield make
    for service in made:
        service.close()
