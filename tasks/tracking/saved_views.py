"""What an analyst finds on opening a project's experiment in MLflow: saved views, a description, the training page.

MLflow keeps a saved view in a tag of the experiment: which runs, which columns, which order. Without one its run table
shows names and durations and no number, and an experiment opens on a page about traces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.tracking.records import DESCRIPTION, NOTE

__all__ = ["VIEWS", "SavedView", "description", "desk_tags", "link"]

_TAG = "mlflow.sharedViewState."
_TRAINING = {"mlflow.experimentKind": "custom_model_development", "mlflow.experiment.primaryMetric.name": "score"}
_WRITTEN = 1_767_225_600_000  # 2026-01-01 in milliseconds: the same text each time, so that nothing is written twice


@dataclass(frozen=True)
class SavedView:
    """A view of the run table, under "Saved views" in MLflow.

    Attributes:
        id: stands in its link.
        name: as MLflow shows it.
        what: what it shows, in a sentence for people.
        runs: MLflow's search filter.
        columns: in this order, as ``metrics.score``.
        order_by: column that the runs are sorted by.
        ascending: whether the least comes first.
        group_by: tag that the runs are grouped by; none if empty.
        charts: metrics with a bar chart each, where the runs are shown as charts.
    """

    id: str
    name: str
    what: str
    runs: str
    columns: tuple[str, ...]
    order_by: str
    ascending: bool = False
    group_by: str = ""
    charts: tuple[str, ...] = ()

    def tag(self) -> tuple[str, str]:
        """Give the tag of the experiment that MLflow keeps it in: name and value."""
        columns = [_column(name) for name in self.columns]
        state = {
            "searchFilter": self.runs,
            "orderByKey": _column(self.order_by),
            "orderByAsc": self.ascending,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": columns,
            "columnOrder": columns,
            "runsHiddenMode": "FIRST_20_RUNS",
            "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": self.group_by}]}
            if self.group_by
            else None,
            **self._charts(),
        }
        view = {"name": self.name, "createdAt": _WRITTEN, "updatedAt": _WRITTEN, "state": _json(state)}
        return f"{_TAG}{self.id}", _json(view)

    def _charts(self) -> dict[str, object]:
        section = f"{self.id}-charts"
        return {
            "compareRunSections": [
                {"uuid": section, "name": self.name, "display": True, "isReordered": True, "deleted": False}
            ],
            "compareRunCharts": [
                {
                    "type": "BAR",
                    "uuid": f"{section}-{metric}",
                    "metricSectionId": section,
                    "metricKey": metric,
                    "displayName": metric,
                    "runsCountToCompare": 40,
                    "deleted": False,
                    "isGenerated": False,
                }
                for metric in self.charts
            ],
        }


VIEWS = (
    SavedView(
        id="ltsft-scores",
        name="Scores",
        what="each language and target task: its score, the gain over the task SFT alone, and interference",
        runs="tags.`ltsft.kind` = 'cell' AND attributes.status = 'FINISHED'",
        columns=(
            "tags.ltsft.target_task",
            "tags.ltsft.language",
            "metrics.score",
            "metrics.gain",
            "metrics.score_task_only",
            "metrics.score_std",
            "metrics.interference.overlap",
            "metrics.interference.sign_conflict",
            "tags.ltsft.method",
        ),
        order_by="metrics.score",
        charts=("score", "gain", "interference.overlap"),
    ),
    SavedView(
        id="ltsft-languages",
        name="Language SFTs",
        what="each language SFT: its held-out score, where and how far it changes the base",
        runs="tags.`ltsft.kind` = 'language' AND attributes.status = 'FINISHED'",
        columns=(
            "tags.ltsft.language",
            "metrics.sparse.best_score",
            "metrics.full.best_score",
            "metrics.sparsity.density",
            "metrics.support_size",
            "metrics.sparsity.l2",
            "params.full.max_steps",
            "params.full.learning_rate",
            "tags.ltsft.method",
            "attributes.Dataset",
        ),
        order_by="metrics.sparse.best_score",
        charts=("sparse.best_score", "sparsity.density", "sparsity.l2"),
    ),
    SavedView(
        id="ltsft-tasks",
        name="Task SFTs",
        what="each task SFT: its held-out score in the source language, by seed",
        runs="tags.`ltsft.kind` = 'task' AND attributes.status = 'FINISHED'",
        columns=(
            "tags.ltsft.target_task",
            "tags.ltsft.language",
            "tags.ltsft.seed",
            "metrics.sparse.best_score",
            "metrics.sparsity.density",
            "metrics.support_size",
            "tags.ltsft.method",
            "attributes.Dataset",
        ),
        order_by="metrics.sparse.best_score",
        charts=("sparse.best_score", "sparsity.density"),
    ),
    SavedView(
        id="ltsft-matrix",
        name="Matrix over time",
        what="each report of the whole matrix, the newest first: mean score and gain, cells and gaps",
        runs="tags.`ltsft.kind` = 'matrix' AND attributes.status = 'FINISHED'",
        columns=("metrics.score", "metrics.gain", "metrics.score_task_only", "metrics.cells", "metrics.gaps"),
        order_by="attributes.start_time",
        charts=("score", "gain", "gaps"),
    ),
    SavedView(
        id="ltsft-methods",
        name="Methods",
        what="the mean over the cells of each method",
        runs="tags.`ltsft.kind` = 'cell' AND attributes.status = 'FINISHED'",
        columns=("metrics.score", "metrics.gain", "metrics.score_task_only", "tags.ltsft.language"),
        order_by="metrics.score",
        group_by="ltsft.method",
        charts=("score", "gain"),
    ),
    SavedView(
        id="ltsft-releases",
        name="Releases",
        what="what was promoted, put forward or rolled back, the newest first, and what the gates said",
        runs="tags.`ltsft.subject` LIKE 'release %'",
        columns=(
            "tags.ltsft.kind",
            "tags.ltsft.language",
            "tags.ltsft.target_task",
            "tags.ltsft.from_version",
            "tags.ltsft.to_version",
            "metrics.gate.floor.score",
            "metrics.gate.champion.lower",
            "tags.ltsft.reason",
            "attributes.User",
        ),
        order_by="attributes.start_time",
        charts=("gate.floor.score",),
    ),
    SavedView(
        id="ltsft-failed",
        name="What failed",
        what="attempts that ended with a verdict; the description says why",
        runs="attributes.status = 'FAILED'",
        columns=("tags.ltsft.subject", "tags.ltsft.failure_type", "attributes.Description"),
        order_by="attributes.start_time",
    ),
)
"""In the order in which the description lists them; the first is what `ltsft run` links to."""


def desk_tags(project: str, experiment_id: str, there: Mapping[str, str]) -> dict[str, str]:
    """Give the tags that an experiment lacks, or has otherwise.

    A description that a person wrote is left alone: it does not carry the mark of ours.

    Args:
        project: its name.
        experiment_id: MLflow's.
        there: the tags that the experiment has.
    """
    wanted = {**_TRAINING, **dict(view.tag() for view in VIEWS)}
    text = description(project, experiment_id)
    if there.get(NOTE, "") == there.get(DESCRIPTION, ""):
        wanted |= {NOTE: text, DESCRIPTION: text}
    return {name: value for name, value in wanted.items() if there.get(name) != value}


def description(project: str, experiment_id: str) -> str:
    """Give the experiment's description, in Markdown: what it is, and a link to each view."""
    rows = [f"- [{view.name}]({_page(experiment_id, view)}): {view.what}" for view in VIEWS]
    return "\n".join(
        [
            f"Sparse fine-tunings (LT-SFT) of the project **{project}**: each run is an SFT, a score or a release.",
            "A run's tag `ltsft.subject` says what it is about; the same subject over time is its history.",
            "",
            *rows,
        ]
    )


def link(address: str, experiment_id: str, view: SavedView = VIEWS[0]) -> str:
    """Give the address of a view.

    Args:
        address: of MLflow's pages, such as ``http://127.0.0.1:5000``.
        experiment_id: MLflow's.
        view: one of `VIEWS`.
    """
    return f"{address.rstrip('/')}/{_page(experiment_id, view)}"


def _page(experiment_id: str, view: SavedView) -> str:
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view.id}"


def _column(name: str) -> str:
    kind, _, rest = name.partition(".")
    return name if name == "attributes.start_time" else f"{kind}.`{rest}`"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
