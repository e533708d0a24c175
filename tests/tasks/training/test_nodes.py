"""How the nodes of a training find each other and part; tests/flows/test_nodes.py has them train."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from ltsft.config.recipe import Recipe
from ltsft.errors import InterruptedTraining, ServiceError
from ltsft.project.project import ProjectRef
from tasks.training import nodes
from tasks.training.joining import find_first_node, is_over
from tasks.training.preparing import Assignment
from tasks.training.together import JointTraining

pytestmark = pytest.mark.integration


def come(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))


def test_the_first_node_waits_for_all_and_the_others_see_when_it_is_done(nodes_port: int) -> None:
    with nodes.Meeting(3, '{"kind": "language"}') as meeting:
        other = come(nodes_port)
        assert other.get(nodes.JOB) == b'{"kind": "language"}'
        for index in (1, 2):
            other.set(nodes.ready(index), "")
        meeting.gather(lambda: False)
        assert not is_over(other)
    assert is_over(other)


def test_a_node_that_does_not_come_that_fails_or_that_has_to_go_ends_the_wait(
    nodes_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes.Meeting(3, "{}") as meeting:
        other = come(nodes_port)
        other.set(nodes.ready(2), "")
        monkeypatch.setattr(nodes, "GATHER_SECONDS", 0.3)
        with pytest.raises(ServiceError, match=r"nodes \[1\] of 3 did not come within 0 s"):
            meeting.gather(lambda: False)
        other.set(nodes.FAILED, "node 1: SourceError: there is no text")
        with pytest.raises(ServiceError, match="node 1: SourceError: there is no text"):
            meeting.gather(lambda: False)
        other.set(nodes.LEFT, "")
        with pytest.raises(InterruptedTraining):
            meeting.gather(lambda: False)


def test_an_order_to_stop_is_passed_on_to_the_first_process_of_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as first:
        monkeypatch.setenv(nodes.FIRST_PROCESS, str(first.pid))
        nodes.pass_on_stop(lambda: True)
        assert first.poll() is None, "this node was asked itself"
        nodes.pass_on_stop(lambda: first.poll() is not None)
        assert first.wait(10) == -signal.SIGTERM


def test_the_name_of_the_first_node_is_that_of_the_job_with_index_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "quick-fox-x7f2p-12.ltsft-nodes.ltsft.svc.cluster.local")

    assert find_first_node(12) == "quick-fox-x7f2p-0.ltsft-nodes.ltsft.svc.cluster.local"


def test_the_pod_of_index_0_becomes_its_command_and_remembers_who_is_asked_to_stop() -> None:
    command = [sys.executable, "-m", "tasks.pod", sys.executable, "-c"]
    command += ["import os; print(os.getpid() == int(os.environ['LTSFT_FIRST_PROCESS']))"]
    done = subprocess.run(command, env=os.environ | {"JOB_COMPLETION_INDEX": "0"}, capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_what_the_other_processes_are_told_survives_json() -> None:
    sources = {"en": Path("/sfts/en")}
    details = {"key": "k", "parents": ["a"], "data": {"train": "t"}, "objective": "pos"}
    joint = JointTraining(
        ref=ProjectRef(file="/p.yaml", overrides=("recipes.pos.nodes=2",)),
        assignment=Assignment(kind="task", language="en", target_task="pos", sources=sources, seed=3, details=details),
        nodes=2,
        processes=4,
        checkpoint_seconds=0.5,
        device="cpu",
    )

    assert JointTraining.model_validate_json(joint.model_dump_json()) == joint
    assert joint.place(1, "10.0.0.7") == [
        "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.7", f"--master-port={joint.port}",
    ]  # fmt: skip


def test_nodes_are_part_of_the_key_only_where_there_are_several() -> None:
    recipe = Recipe(density=0.1, batch_size=8)

    assert "nodes" not in recipe.of_seed(1)
    assert recipe.model_copy(update={"nodes": 2}).of_seed(1)["nodes"] == 2
    with pytest.raises(ValueError, match=r"must be a multiple of accumulation \(1\) x processes \(2\) x nodes \(3\)"):
        Recipe(density=0.1, batch_size=8, processes=2, nodes=3)
