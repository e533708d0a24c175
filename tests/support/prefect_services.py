"""What each service of Prefect's server has to do for us, whatever the database: a file of tests for each inherits it.

The tests are in the order of a file, and what takes a server long is begun before the first of them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from servers import wait_until

SCHEDULED = ("retrain", "evaluate-matrix", "watch-inbox", "reconcile")
PATIENCE = 400.0
"""Seconds; what is waited for takes a few where nothing else runs."""


def slots(rig: Any, limit: str) -> int:
    """How many slots of a limit are taken."""
    return int(rig.ask("GET", f"/v2/concurrency_limits/{limit}")["active_slots"])


class PrefectServices:
    """The services, one by one."""

    @pytest.fixture(scope="class", autouse=True)
    def begun(self, rig: Any) -> dict[str, str]:
        """Begin what the server needs time for: a lease that its holder leaves, and a run that falls silent."""
        begun = {name: rig.run("reconcile", "second") for name in ("holder", "refused")}
        begun["holder's"] = rig.set_state(begun["holder"], "PENDING")
        begun["refused's"] = rig.set_state(begun["refused"], "PENDING")
        for name in ("silent", "over"):
            begun[name] = rig.run("adapt-language", "first", parameters={"language": "aa"})
            rig.set_state(begun[name], "PENDING")
            rig.set_state(begun[name], "RUNNING")
            rig.emit("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{begun[name]}"})
        rig.set_state(begun["over"], "COMPLETED")
        begun["late"] = rig.run("adapt-language", "second", seconds=-60, parameters={"language": "aa"})
        begun["text"] = "inbox/ee/news.txt"
        self.bucket("first").put(begun["text"], b"bada gidu\n" * 50)
        return begun

    def bucket(self, project: str) -> Any:
        from tasks.storage import Bucket

        return Bucket("s3://services") / project

    @pytest.mark.parametrize("project", ["first", "second"])
    @pytest.mark.parametrize("flow", SCHEDULED)
    def test_scheduled_runs_of_the_right_project_are_made(self, rig: Any, flow: str, project: str) -> None:
        runs = wait_until(lambda: rig.runs(flow, project), f"scheduled runs of {flow}/{project}", PATIENCE)

        assert {run["parameters"]["project"]["file"] for run in runs} == {str(rig.projects[project])}
        assert all(f"project:{project}" in run["tags"] for run in runs)
        assert any(run["auto_scheduled"] for run in runs)

    def test_a_worker_takes_scheduled_runs_and_a_text_makes_exactly_one_onboarding(
        self, rig: Any, begun: dict[str, str]
    ) -> None:
        rig.start_worker()

        def completed() -> list[Any]:
            return [r for r in rig.runs("watch-inbox", "first") if r["state"]["type"] == "COMPLETED"]

        try:
            taken = wait_until(completed, "a scheduled run of watch-inbox", PATIENCE)
            [onboarding] = wait_until(lambda: rig.runs("onboard-language", "first"), "the onboarding", PATIENCE)
            [event] = wait_until(lambda: rig.events("ltsft.text.arrived"), "the stored event", PATIENCE)
        finally:
            rig.worker.kill()
        rig.emit(event["event"], event["resource"], id=event["id"], payload=event["payload"])  # told twice
        rig.emit("ltsft.text.arrived", event["resource"] | {"ltsft.project": "first.more"}, payload=event["payload"])

        assert all(run["auto_scheduled"] for run in taken)
        assert onboarding["parameters"] == {"language": "ee", "project": {"file": str(rig.projects["first"])}}
        wait_until(lambda: len(rig.events("ltsft.text.arrived")) == 2, "the other project's event", PATIENCE)
        assert [run["id"] for run in rig.runs("onboard-language", "first")] == [onboarding["id"]]
        assert rig.runs("onboard-language", "second") == []

    def test_a_worker_that_is_gone_is_noticed(self, rig: Any) -> None:
        def status() -> str:
            [worker] = rig.ask("POST", "/work_pools/ltsft-cpu/workers/filter", json={})
            return str(worker["status"])

        wait_until(lambda: status() == "OFFLINE", "the worker to be offline", PATIENCE)

    def test_a_run_that_falls_silent_has_crashed_and_one_that_ended_has_not(
        self, rig: Any, begun: dict[str, str]
    ) -> None:
        state = wait_until(
            lambda: s if (s := rig.state(begun["silent"]))["type"] != "RUNNING" else None, "the automation", PATIENCE
        )

        assert (state["type"], state["message"]) == ("CRASHED", "no sign of life for 10 seconds")
        assert rig.state(begun["over"])["type"] == "COMPLETED"

    def test_a_run_that_nobody_takes_is_late(self, rig: Any, begun: dict[str, str]) -> None:
        wait_until(lambda: rig.state(begun["late"])["name"] == "Late", "the run to be late", PATIENCE)

    def test_a_lease_whose_holder_is_gone_comes_free(self, rig: Any, begun: dict[str, str]) -> None:
        assert (begun["holder's"], begun["refused's"]) == ("PENDING", "CANCELLED"), "one at a time"
        limit = rig.deployment("reconcile", "second")["global_concurrency_limit"]["id"]

        wait_until(lambda: slots(rig, limit) == 0, "the slot to come free", PATIENCE)
        assert rig.set_state(rig.run("reconcile", "second"), "PENDING") == "PENDING"

    @pytest.mark.slow  # a lease lasts half a minute, and a server takes its time to start
    def test_a_lease_comes_free_also_when_the_server_was_killed_meanwhile(self, rig: Any) -> None:
        assert rig.set_state(rig.run("reconcile", "first"), "PENDING") == "PENDING"
        rig.server.kill()
        rig.server.start()
        rig.server.wait_for(f"{rig.url}/health")
        limit = rig.deployment("reconcile", "first")["global_concurrency_limit"]
        assert limit["active_slots"] == 1, "the holder's"

        wait_until(lambda: slots(rig, limit["id"]) == 0, "the slot to come free", PATIENCE)

    def test_events_are_kept_and_old_ones_go(self, rig: Any) -> None:
        rig.emit(
            "ltsft.test.old", {"prefect.resource.id": "ltsft.test"}, occurred=datetime.now(UTC) - timedelta(days=6.9999)
        )
        assert wait_until(lambda: rig.events("ltsft.test.old"), "the event to be stored", PATIENCE)
        wait_until(lambda: not rig.events("ltsft.test.old"), "the old event to go", PATIENCE)
        assert rig.events("ltsft.text.arrived"), "what is newer stays"

    def test_a_schedule_that_is_switched_off_stays_off_and_one_that_is_gone_makes_no_runs(self, rig: Any) -> None:
        watch = rig.deployment("watch-inbox", "second")
        path = f"/deployments/{watch['id']}/schedules/{watch['schedules'][0]['id']}"
        rig.ask("PATCH", path, json={"active": False})
        rig.write_deployments("evaluate-matrix")
        spec = (rig.folder / "root" / "prefect.yaml").read_text()
        (rig.folder / "root" / "prefect.yaml").write_text(re.sub("Notice new text", "Notice any text", spec))

        told = rig.bootstrap("second", "--schedule=watch-inbox=12s", "--schedule=retrain=none")

        assert "update deployment watch-inbox/second (description)" in told
        assert "delete deployment evaluate-matrix/second" in told
        assert [s["active"] for s in rig.deployment("watch-inbox", "second")["schedules"]] == [False]
        new = rig.bootstrap("first", "--schedule=watch-inbox=12s", "--schedule=retrain=1h")
        assert "delete deployment evaluate-matrix/first" in new

        def scheduled(flow: str, project: str) -> list[Any]:
            return [run for run in rig.runs(flow, project) if run["state"]["name"] == "Scheduled"]

        def is_hourly() -> bool:
            starts = sorted(run["expected_start_time"] for run in scheduled("retrain", "first"))
            return len(starts) > 1 and datetime.fromisoformat(starts[1]) - datetime.fromisoformat(
                starts[0]
            ) == timedelta(hours=1)

        wait_until(is_hourly, "runs of the new schedule", PATIENCE)
        assert scheduled("retrain", "second") == []
        assert not [r for r in scheduled("watch-inbox", "second") if r["auto_scheduled"]]

    def test_no_service_ended_with_an_error(self, rig: Any) -> None:
        told = re.findall(r"^[\w.]*(?:Error|Exception)\b.*$", rig.server.log.read_text(), re.MULTILINE)
        assert [line for line in told if "database is locked" not in line] == [], "SQLite is, on a busy machine"
