"""Bootstrap against Prefect's own server, MLflow on SQLite and S3 over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Completed, Running

from ltsft.errors import ConfigError
from tasks.orchestration.automations import HEARTBEAT_SECONDS, zombie_automation
from tasks.orchestration.bootstrapping import PoolSettings, RunSettings, _template, _where_runs_find, bootstrap
from tasks.orchestration.deploying import parse_schedule
from tasks.settings import read_settings

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
ONBOARD = "ltsft tiny: onboard a language when its text arrives"
Write = Callable[..., None]


@pytest.fixture
def settings(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LTSFT_BUCKET", "s3://bootstrapped")
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


@pytest.fixture
def client(prefect_server: None, settings: None) -> Iterator[SyncPrefectClient]:
    """Prefect's API, with nothing of ours in it."""
    with get_client(sync_client=True) as opened:
        for deployment in opened.read_deployments():
            opened.delete_deployment(deployment.id)
        for automation in opened.read_automations():
            opened.delete_automation(automation.id)
        for pool in opened.read_work_pools():
            opened.delete_work_pool(pool.name)
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with pools and some of the deployments."""
    made = tmp_path / "root"
    shutil.copytree(ROOT / "infra" / "work-pools", made / "infra" / "work-pools")
    write(made)
    return made


def write(root: Path, *names: str, **changes: Any) -> None:
    """Write ``prefect.yaml`` with these deployments, some facts of them changed."""
    wanted = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    names = names or ("watch-inbox", "onboard-language")
    wanted["deployments"] = [d | changes for d in wanted["deployments"] if d["name"] in names]
    (root / "prefect.yaml").write_text(yaml.safe_dump(wanted))


@pytest.fixture
def other_project(tiny_project: Path) -> Path:
    """A second project, whose name begins as that of the first."""
    project = yaml.safe_load(tiny_project.read_text()) | {"name": "tiny.second"}
    file = tiny_project.with_name("second.yaml")
    file.write_text(yaml.safe_dump(project))
    return file


def run(*arguments: Any, **named: Any) -> list[str]:
    return [str(change) for change in bootstrap(*arguments, **named)]


def test_asking_changes_nothing_and_twice_changes_nothing_the_second_time(
    client: SyncPrefectClient, root: Path, tiny_project: Path, tmp_path: Path
) -> None:
    asked = run(tiny_project, root=root, dry_run=True)
    assert run(tiny_project, root=root, dry_run=True) == asked
    done = run(tiny_project, root=root)
    again = run(tiny_project, root=root)
    write(root, tags=["other"])
    changed = run(tiny_project, root=root, pools=PoolSettings(limits={"ltsft-gpu": 3}))

    assert done == asked
    assert done == [
        "create work pool ltsft-cpu",
        "create work pool ltsft-gpu",
        "create deployment onboard-language/tiny",
        f"create automation {ONBOARD}",
        "create deployment watch-inbox/tiny",
        "create automation ltsft zombie runs",
        f"create MLflow experiment tiny (artifacts: {tmp_path}/store/artifacts)",
        "create bucket bootstrapped",
        "create inbox s3://bootstrapped/tiny/inbox",
    ]
    assert again == []
    assert changed == [
        "update work pool ltsft-gpu (concurrency limit None -> 3)",
        "update deployment onboard-language/tiny (tags)",
        "update deployment watch-inbox/tiny (tags)",
    ]


def test_each_project_has_deployments_and_triggers_of_its_own_and_leaves_those_of_others(
    client: SyncPrefectClient, root: Path, tiny_project: Path, other_project: Path
) -> None:
    run(tiny_project, root=root)
    second = run(other_project, root=root)
    changed = [line for line in second if line.startswith(("update", "delete"))]
    assert changed == ["update lifecycle of bucket bootstrapped (leases, checkpoints)"], "of its own folder"
    assert run(tiny_project, root=root) == []
    write(root, "watch-inbox")
    fewer = run(other_project, root=root)
    assert fewer == [
        "delete automation ltsft tiny.second: onboard a language when its text arrives",
        "delete deployment onboard-language/tiny.second",
    ]
    for project, file in (("tiny", tiny_project), ("tiny.second", other_project)):
        found = client.read_deployment_by_name(f"watch-inbox/{project}")
        assert found.parameters == {"project": {"file": str(file)}}
        assert {"ltsft", f"project:{project}"} <= {*found.tags}
    [kept] = [a for a in client.read_automations() if "onboard" in a.name]
    assert kept.name == ONBOARD
    assert kept.trigger.match.model_dump()["ltsft.project"] == "tiny"
    assert kept.actions[0].deployment_id == client.read_deployment_by_name("onboard-language/tiny").id


def test_what_is_switched_off_stays_off_whatever_else_changes(
    client: SyncPrefectClient, root: Path, tiny_project: Path
) -> None:
    write(root, "watch-inbox", "onboard-language", "reconcile")
    run(tiny_project, root=root)
    watch, reconcile = (client.read_deployment_by_name(f"{name}/tiny") for name in ("watch-inbox", "reconcile"))
    client.update_deployment_schedule(watch.id, watch.schedules[0].id, active=False)
    client.pause_deployment(reconcile.id)
    client.pause_automation(client.read_automations_by_name(ONBOARD)[0].id)

    write(root, "watch-inbox", "onboard-language", "reconcile", description="another one", tags=["more"])
    changed = run(tiny_project, root=root)
    moved = run(tiny_project, root=root, runs=RunSettings(schedules={"watch-inbox": "30s"}))

    assert "update deployment watch-inbox/tiny (description, tags)" in changed
    assert moved == ["update schedules of deployment watch-inbox/tiny (no more every 900 s, now every 30 s)"]
    watch, reconcile = (client.read_deployment_by_name(f"{name}/tiny") for name in ("watch-inbox", "reconcile"))
    assert [s.active for s in watch.schedules] == [False]
    assert watch.schedules[0].schedule.interval == timedelta(seconds=30)
    assert reconcile.paused
    assert not client.read_automations_by_name(ONBOARD)[0].enabled


def test_what_does_not_stand_in_the_file_any_more_goes(
    client: SyncPrefectClient, root: Path, tiny_project: Path
) -> None:
    write(root, "watch-inbox", "onboard-language", "reconcile")
    run(tiny_project, root=root)
    stranger = client.read_deployment_by_name("reconcile/tiny")
    mine = client.create_deployment(stranger.flow_id, "my-own", entrypoint="x:y", path=".", tags=stranger.tags)
    watch = client.read_deployment_by_name("watch-inbox/tiny")
    client.create_deployment_schedules(watch.id, [(CronSchedule(cron="* * * * *"), True)])

    write(root, "watch-inbox", schedules=[])
    changed = run(tiny_project, root=root)

    assert changed == [
        "update schedules of deployment watch-inbox/tiny (no more cron * * * * * UTC, no more every 900 s)",
        f"delete automation {ONBOARD}",
        "delete deployment onboard-language/tiny",
        "delete deployment reconcile/tiny",
    ]
    assert client.read_deployment_by_name("watch-inbox/tiny").schedules == []
    assert {d.id for d in client.read_deployments()} == {mine, watch.id}, "what others made under our tags stays"
    assert [a.name for a in client.read_automations()] == ["ltsft zombie runs"]


def old_deployment(client: SyncPrefectClient, name: str, **more: Any) -> Any:
    """Make a deployment as the version before did, and give its id."""
    row = next(d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"] if d["name"] == name)
    flow = client.create_flow(load_flow_from_entrypoint(row["entrypoint"], use_placeholder_flow=False))
    every = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=900)), active=True)
    facts = {"parameters": {"project": {"file": "configs/ud.yaml"}}, "schedules": [every], "tags": ["ltsft"]}
    return client.create_deployment(flow, name, entrypoint=row["entrypoint"], path=".", **(facts | more))


def test_deployments_of_the_version_before_go_and_what_was_off_there_is_off(
    client: SyncPrefectClient, root: Path, tiny_project: Path
) -> None:
    watch, onboard = (old_deployment(client, name) for name in ("watch-inbox", "onboard-language"))
    schedule = client.read_deployment(watch).schedules[0]
    client.update_deployment_schedule(watch, schedule.id, active=False)
    row = {
        "name": "ltsft onboard a language when its text arrives",
        "match": {"prefect.resource.id": "ltsft.language.*"},
    }
    trigger = DeploymentEventTrigger.model_validate(row | {"expect": ["ltsft.text.arrived"]})
    trigger.set_deployment_id(onboard)
    client.create_automation(trigger.as_automation())

    done = run(tiny_project, root=root)

    assert "create deployment watch-inbox/tiny (switched off, as it was before)" in done
    assert "create deployment onboard-language/tiny" in done
    assert [line for line in done if line.startswith("delete")] == [
        "delete automation ltsft onboard a language when its text arrives",
        "delete deployment onboard-language/onboard-language",
        "delete deployment watch-inbox/watch-inbox",
    ]
    assert {d.name for d in client.read_deployments()} == {"tiny"}
    assert [s.active for s in client.read_deployment_by_name("watch-inbox/tiny").schedules] == [False]
    assert [a.name for a in client.read_automations() if "onboard" in a.name] == [ONBOARD]
    assert run(tiny_project, root=root) == []


def test_an_old_deployment_with_a_run_under_way_only_loses_its_schedule_until_the_run_is_over(
    client: SyncPrefectClient, root: Path, tiny_project: Path
) -> None:
    write(root, "watch-inbox")
    watch, adapt = (old_deployment(client, name) for name in ("watch-inbox", "adapt-language"))
    under_way = client.create_flow_run_from_deployment(watch)
    client.set_flow_run_state(under_way.id, Running(), force=True)

    during = run(tiny_project, root=root)
    there = client.read_deployment(watch)
    again = run(tiny_project, root=root)
    client.set_flow_run_state(under_way.id, Completed(), force=True)
    after = run(tiny_project, root=root)

    told = f"(run {under_way.name} is not over; the next bootstrap deletes the deployment)"
    assert [line for line in during if line.startswith("delete")] == [
        f"delete schedules of deployment adapt-language/adapt-language {told}",
        f"delete schedules of deployment watch-inbox/watch-inbox {told}",
    ]
    assert there.schedules == []
    assert client.read_deployment_by_name("watch-inbox/tiny").schedules[0].active
    assert again == []
    assert after == [
        "delete deployment adapt-language/adapt-language",
        "delete deployment watch-inbox/watch-inbox",
    ]
    assert {d.id for d in client.read_deployments()}.isdisjoint({watch, adapt})


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("30s", [IntervalSchedule(interval=timedelta(seconds=30))]),
        ("2h", [IntervalSchedule(interval=timedelta(hours=2))]),
        ("0 3 * * 6", [CronSchedule(cron="0 3 * * 6", timezone="UTC")]),
        ("none", []),
    ],
)
def test_a_schedule_is_an_interval_a_cron_or_none(text: str, given: list[Any]) -> None:
    facts = {"cron", "interval", "timezone"}
    assert [s.model_dump(include=facts) for s in parse_schedule(text)] == [s.model_dump(include=facts) for s in given]


@pytest.mark.parametrize("text", ["0s", "soon", "30", "61 * * * *", ""])
def test_a_schedule_that_is_none_of_these_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="an interval as 30s or 15m, a cron in UTC, or none; got"):
        parse_schedule(text)


def test_a_schedule_for_what_is_not_there_is_refused(client: SyncPrefectClient, root: Path, tiny_project: Path) -> None:
    with pytest.raises(
        ConfigError, match="no deployment 'watch-inbx' to schedule; allowed are onboard-language, watch"
    ):
        bootstrap(tiny_project, root=root, runs=RunSettings(schedules={"watch-inbx": "30s"}))


def test_flows_find_the_project_file_where_the_image_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkout = tmp_path / "checkout"

    assert _where_runs_find(Path("checkout/configs/ud.yaml"), Path("checkout")) == "configs/ud.yaml"
    assert _where_runs_find(checkout / "configs/ud.yaml", Path("checkout")) == "configs/ud.yaml"
    assert _where_runs_find(Path("/cache/projects/mine.yaml"), Path("checkout")) == "/cache/projects/mine.yaml"
    with pytest.raises(ConfigError, match=r"mine\.yaml is not under .*checkout.*say with --run-file"):
        _where_runs_find(Path("mine.yaml"), Path("checkout"))


def test_the_window_of_the_zombie_automation_is_three_heartbeats_or_more() -> None:
    automation = zombie_automation()
    pools = [(ROOT / f"infra/work-pools/ltsft-{name}.json").read_text() for name in ("cpu", "gpu")]

    assert automation.trigger.within.total_seconds() >= 3 * HEARTBEAT_SECONDS
    assert all('"PREFECT_FLOWS_HEARTBEAT_FREQUENCY",\n' in pool for pool in pools)
    assert all(f'"value": "{HEARTBEAT_SECONDS}"' in pool for pool in pools)


def test_a_variable_that_a_pool_does_not_have_is_refused(client: SyncPrefectClient, tiny_project: Path) -> None:
    with pytest.raises(ConfigError, match=r"ltsft-gpu\.json has no variable 'images'; allowed are name, command"):
        bootstrap(tiny_project, root=ROOT, pools=PoolSettings(job_variables={"ltsft-gpu.images": "x"}), dry_run=True)


def test_every_process_of_a_pool_gives_signs_of_life() -> None:
    template = _template(Path("ltsft-cpu.json"), "process", {})

    assert template["variables"]["properties"]["env"]["default"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
