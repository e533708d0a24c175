"""What tests of every room share: real data where it is, and a tiny base and project made on the spot."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from sigterm import raising_on_sigterm
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from ltsft.heap import collect_seldom

SYLLABLES = [c + v for c in "bdfgklmnprstv" for v in "aeiou"]
LABELS = ["NOUN", "VERB", "ADJ", "PUNCT"]
OPEN_GATES = {
    "min_score": 0.01,
    "min_over_majority": -1.0,
    "max_drop": 1.0,
    "max_overlap": 1.0,
    "max_sign_conflict": 1.0,
    "max_language_loss_change": 100.0,
}
"""The tiny project hardly learns, so that its releases would be refused by chance."""

collect_seldom()
_modules_put_aside = 0


def pytest_runtest_teardown() -> None:
    """Put aside what imports have made: the trainer collects garbage before each phase, half a second each time."""
    put_modules_aside()


def put_modules_aside() -> None:
    global _modules_put_aside
    if len(sys.modules) > _modules_put_aside + 300:
        _modules_put_aside = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quiet_environment() -> None:
    """Keep the services quiet and the numbers the same whatever runs beside."""
    from tasks.quiet import quiet_services

    quiet_services()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes beside each server, for GenAI alone
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, bases and reference files: the folder that LTSFT_SHARED names."""
    named = os.environ.get("LTSFT_SHARED")
    if not named or not Path(named).is_dir():
        pytest.skip("real data are not here: set LTSFT_SHARED to a folder with data/, models/ and reference/")
    return Path(named)


@pytest.fixture
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `sigterm.Stopped` in this process."""
    with raising_on_sigterm():
        yield


@pytest.fixture
def nodes_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A free port for the nodes of one training to meet at, set for this process and those it starts."""
    from tasks.settings import read_settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LTSFT_NODES_PORT", str(free.getsockname()[1]))
    read_settings.cache_clear()
    yield read_settings().nodes_port
    read_settings.cache_clear()


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once for all workers: the first that asks makes it, the others wait for it."""
    mine = tmp_path_factory.getbasetemp()
    root = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # left by a worker that failed
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def prefect_database(once: Once) -> Path:
    """A database of Prefect's with its tables and nothing in them, made once for all workers; to be copied."""
    return once("prefect", _make_prefect_database) / "prefect.db"


def _make_prefect_database(folder: Path) -> None:
    make = "import asyncio; from prefect.server.database import provide_database_interface as it; "
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
    }
    subprocess.run([sys.executable, "-c", f"{make}asyncio.run(it().create_db())"], env=environment, check=True)
    with contextlib.closing(sqlite3.connect(folder / "prefect.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's own server, one for all tests of a worker; as the command starts it where none is set."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.utilities.asyncutils import run_coro_as_sync

    from tasks.orchestration.ephemeral_server import EphemeralServer

    file = shutil.copy(prefect_database, tmp_path_factory.mktemp("prefect") / "prefect.db")
    server = EphemeralServer(PREFECT_SERVER_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{file}")
    server.wait(300)

    async def drain() -> None:
        for sent in (APILogWorker.instance().drain(), EventsWorker.drain_all()):
            if inspect.isawaitable(sent):
                await sent

    with (
        temporary_settings({PREFECT_API_URL: server.url}),
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield
        run_coro_as_sync(drain())
    server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """S3 over HTTP (moto), once for all tests; gives its address."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Point this process at an S3 server."""
    from tasks import storage

    def point(url: str) -> None:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        storage._client.cache_clear()

    yield point
    storage._client.cache_clear()


@pytest.fixture
def s3(s3_server: str, at: Callable[[str], None]) -> str:
    """S3 over HTTP with nothing in it; gives its address."""
    import httpx

    httpx.post(f"{s3_server}/moto-api/reset")
    at(s3_server)
    return s3_server


@pytest.fixture
def bucket(s3: str) -> Any:
    """An empty bucket."""
    from tasks.storage import Bucket

    made = Bucket("s3://ltsft-tests/some/prefix")
    made.create(expire_days={})
    return made


def _words(seed: int) -> dict[str, list[str]]:
    rng = random.Random(seed)
    ending = {"NOUN": "o", "VERB": "as", "ADJ": "ik", "PUNCT": ""}
    stems = ["".join(rng.choices(SYLLABLES, k=2)) for _ in range(60)]
    words = {label: [stem + ending[label] for stem in stems[i::3]] for i, label in enumerate(LABELS[:3])}
    return {**words, "PUNCT": ["."]}


def _sentence(words: dict[str, list[str]], rng: random.Random) -> list[tuple[str, str]]:
    order = ["ADJ", "NOUN", "VERB", "NOUN"][rng.randrange(2) :]
    tagged = [(rng.choice(words[label]), label) for label in order]
    return [*tagged, (".", "PUNCT")]


def _conllu(sentences: list[list[tuple[str, str]]]) -> str:
    blocks = []
    for sentence in sentences:
        rows = [
            f"{i}\t{w}\t_\t{label}\t_\t_\t{0 if i == 1 else 1}\t{'root' if i == 1 else 'dep'}\t_\t_"
            for i, (w, label) in enumerate(sentence, 1)
        ]
        blocks.append("\n".join(rows) + "\n\n")
    return "".join(blocks)


@pytest.fixture(scope="session")
def tiny_base(once: Once) -> Path:
    """A folder with a tiny, untrained BERT and its tokenizer."""
    return once("base", _make_base)


def _make_base(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    words = sorted({word for seed in range(4) for group in _words(seed).values() for word in group})
    parts = [*letters, *(f"##{c}" for c in letters), *SYLLABLES, *(f"##{s}" for s in (*SYLLABLES, "as", "ik")), *words]
    # not trained: a trainer breaks ties by chance, and then each base would learn something else
    vocabulary = {part: number for number, part in enumerate(list(dict.fromkeys([*special, *parts]))[:200])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture
def tiny_project(tiny_base: Path, tmp_path: Path) -> Path:
    """A project file with three languages and a tagging task, small enough to train in seconds."""
    return _write_project(tmp_path, tiny_base)


@pytest.fixture(scope="session")
def tiny_project_in(tiny_base: Path) -> Callable[[Path], Path]:
    """Write that project into a folder."""
    return lambda folder: _write_project(folder, tiny_base)


@pytest.fixture(scope="session")
def finish(prefect_server: None, tiny_base: Path) -> Callable[[Path], None]:
    """Write the tiny project into an empty folder and run it to its end, with this worker's Prefect server."""

    def finish_in(folder: Path) -> None:
        file = _write_project(folder, tiny_base)
        project = yaml.safe_load(file.read_text(encoding="utf-8"))
        labelled = {"train": "conllu:cc-train.conllu", "dev": "conllu:cc-dev.conllu"}
        project["target_tasks"]["pos"]["supervised"] = {"cc": labelled}
        file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
        from flows.retrain import retrain
        from ltsft.project.project import ProjectRef

        put_modules_aside()
        state = retrain(ProjectRef(file=str(file)), return_state=True)
        assert state.is_completed(), state.message

    return finish_in


@pytest.fixture(scope="session")
def finished_project(once: Once, finish: Callable[[Path], None]) -> Path:
    """The tiny project once run to its end; for reading. `changeable_project` is a copy to change and run again.

    ``prefect.json`` beside it has what Prefect's server said of its runs: that server is another worker's.
    """

    def make(folder: Path) -> None:
        finish(folder)
        (folder / "prefect.json").write_text(json.dumps(_read_prefect(f"retrain {folder / 'tiny.yaml'}")))

    return once("finished", make) / "tiny.yaml"


def _read_prefect(name: str) -> dict[str, Any]:
    """Read what Prefect's server has of the runs within a flow run, once the last log line is there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters

    named = filters.FlowRunFilter(name=filters.FlowRunFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        (root,) = client.read_flow_runs(flow_run_filter=named)
        parent = filters.FlowRunFilterParentFlowRunId(any_=[root.id])
        own = filters.FlowRunFilter(parent_flow_run_id=parent)
        flow_runs, task_runs = client.read_flow_runs(flow_run_filter=own), client.read_task_runs(flow_run_filter=own)
        logs = filters.LogFilter(flow_run_id=filters.LogFilterFlowRunId(any_=[run.id for run in flow_runs]))
        for _ in range(60):  # log lines are sent from a thread of their own
            said = [log.message for log in client.read_logs(logs, limit=200)]
            if sum("Finished in state" in line for line in said) >= len(flow_runs) + len(task_runs):
                break
            time.sleep(0.5)
        return {
            "flow_runs": [run.name for run in flow_runs],
            "task_runs": [run.name for run in task_runs],
            "artifacts": {
                str(a.key): {"type": a.type, "data": a.data} for a in client.read_artifacts(flow_run_filter=own)
            },
            "logs": said,
        }


@pytest.fixture(scope="session")
def finished_project_in(finished_project: Path) -> Callable[[Path], Path]:
    """Copy the finished project into a new folder, with a record of its own."""

    def copy(folder: Path) -> Path:
        shutil.copytree(finished_project.parent, folder)
        file = folder / finished_project.name
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(finished_project.parent), str(folder)), encoding="utf-8")
        return file

    return copy


@pytest.fixture
def changeable_project(finished_project_in: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the finished project with a record of its own."""
    return finished_project_in(tmp_path / "project")


def _write_project(folder: Path, base: Path) -> Path:
    data = folder / "data"
    data.mkdir()
    for number, code in enumerate(("aa", "bb", "cc")):
        words, rng = _words(number), random.Random(number)
        lines = [" ".join(w for w, _ in _sentence(words, rng)) for _ in range(600)]
        (data / f"{code}.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
        for split, count in (("train", 150), ("dev", 40), ("test", 50)):
            seen: dict[str, list[tuple[str, str]]] = {}
            while len(seen) < count:
                sentence = _sentence(words, random.Random(rng.random()))
                if (text := " ".join(w for w, _ in sentence)) not in lines:
                    seen[text] = sentence
            (data / f"{code}-{split}.conllu").write_text(_conllu(list(seen.values())), encoding="utf-8")
    phase = {"max_steps": 12, "min_steps": 12, "learning_rate": 1e-3}
    recipe = {"density": 0.2, "full": phase, "sparse": phase, "batch_size": 8, "max_length": 24, "evaluations": 2}
    project = {
        "name": "tiny",
        "artificial": True,
        "data_root": str(data),
        "base": {"id": str(base)},
        "languages": {
            c: {"name": f"Language {c}", "script": "Latn", "text": f"text:{c}.txt"} for c in ("aa", "bb", "cc")
        },
        "target_tasks": {
            "pos": {
                "objective": "pos",
                "labels": LABELS,
                "sources": {"aa": {"train": "conllu:aa-train.conllu", "dev": "conllu:aa-dev.conllu"}},
                "test": {c: f"conllu:{c}-test.conllu" for c in ("aa", "bb", "cc")},
            }
        },
        "recipes": {"language": recipe, "pos": recipe},
        "gates": {"text": {"min_characters": 100}, "release": OPEN_GATES},
        "store": {"folder": str(folder / "store")},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return file
