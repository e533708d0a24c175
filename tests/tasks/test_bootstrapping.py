"""Bootstrap against Prefect's own server, MLflow on SQLite and S3 over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ltsft.config import load_project
from ltsft.errors import ConfigError
from tasks.bootstrapping import HEARTBEAT_SECONDS, bootstrap, zombie_automation
from tasks.settings import read_settings

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LTSFT_BUCKET", "s3://bootstrapped")
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


def test_asking_changes_nothing_and_twice_changes_nothing_the_second_time(
    prefect_server: None, settings: None, tiny_project: Path, tmp_path: Path
) -> None:
    project = load_project(tiny_project)
    root = tmp_path / "root"
    shutil.copytree(ROOT / "infra" / "work-pools", root / "infra" / "work-pools")
    wanted = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    wanted["deployments"] = [d for d in wanted["deployments"] if d["name"] in ("watch-inbox", "onboard-language")]
    (root / "prefect.yaml").write_text(yaml.safe_dump(wanted))

    asked = bootstrap(project, root=root, dry_run=True)
    assert bootstrap(project, root=root, dry_run=True) == asked
    done = bootstrap(project, root=root)
    again = bootstrap(project, root=root)
    wanted["deployments"][0]["tags"] = ["other"]
    (root / "prefect.yaml").write_text(yaml.safe_dump(wanted))
    changed = bootstrap(project, root=root, pool_limits={"ltsft-gpu": 3})

    assert done == asked
    assert [str(change) for change in done] == [
        "create work pool ltsft-cpu",
        "create work pool ltsft-gpu",
        "create deployment onboard-language/onboard-language",
        "create automation ltsft onboard a language when its text arrives",
        "create deployment watch-inbox/watch-inbox",
        "create automation ltsft zombie runs",
        f"create MLflow experiment tiny (artifacts: {tmp_path}/store/artifacts)",
        "create bucket bootstrapped",
        "create inbox s3://bootstrapped/tiny/inbox",
    ]
    assert again == []
    assert [str(change) for change in changed] == [
        "update work pool ltsft-gpu (concurrency limit None -> 3)",
        "update deployment onboard-language/onboard-language (tags)",
    ]


def test_the_window_of_the_zombie_automation_is_three_heartbeats_or_more() -> None:
    automation = zombie_automation()
    pools = [(ROOT / f"infra/work-pools/ltsft-{name}.json").read_text() for name in ("cpu", "gpu")]

    assert automation.trigger.within.total_seconds() >= 3 * HEARTBEAT_SECONDS
    assert all('"PREFECT_FLOWS_HEARTBEAT_FREQUENCY",\n' in pool for pool in pools)
    assert all(f'"value": "{HEARTBEAT_SECONDS}"' in pool for pool in pools)


def test_a_variable_that_a_pool_does_not_have_is_refused(
    prefect_server: None, settings: None, tiny_project: Path
) -> None:
    with pytest.raises(ConfigError, match=r"ltsft-gpu\.json has no variable 'images'; allowed are name, command"):
        bootstrap(load_project(tiny_project), root=ROOT, job_variables={"ltsft-gpu.images": "x"}, dry_run=True)
