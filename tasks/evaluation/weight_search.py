"""The search of weights as a task: held-out data, the SFTs that exist, a grid of settings, one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean

from prefect.artifacts import create_markdown_artifact

from ltsft.canonical import hash_json
from ltsft.composition import RULES, Part
from ltsft.config import TargetTask
from ltsft.data import fingerprint
from ltsft.errors import ConfigError
from ltsft.experiments import Setting, WeightSearch
from ltsft.methods import method_named
from ltsft.objectives import OBJECTIVES
from ltsft.project import language_subject, task_subject
from tasks.evaluation.cells import labelled_examples, target_scorer
from tasks.evaluation.experiments import VERSION
from tasks.orchestration import artifact_key, show, task
from tasks.tracking import NewRun
from tasks.workspace import Workspace


@task(name="search weights", task_run_name="search weights {target.name}")
def search(workspace: Workspace, target: TargetTask, settings: Sequence[Setting]) -> WeightSearch:
    """Score every setting on the held-out data of each language that has some and is no source language.

    Raises:
        ConfigError: no language has held-out data, a rule is unknown, or the method has nothing to compose.
        TrainingError: an SFT does not exist yet.
    """
    project = workspace.project
    method = method_named(project.method)
    if not method.has_languages or method.is_stacked:
        reason = "stacks modules, which have no weights" if method.is_stacked else "composes nothing"
        raise ConfigError(f"{method.name} {reason}, so there is nothing to search; search with lt_sft, for example")
    for setting in settings:
        if setting.rule not in RULES:
            raise ConfigError(f"there is no composition rule {setting.rule!r}; allowed are {', '.join(RULES)}")
    held_out = {c: target.held_out(c) for c in project.languages if c not in target.sources and target.held_out(c)}
    if not held_out:
        raise ConfigError(
            f"{target.name}: no target language has held-out data; name some under target_tasks.{target.name}.dev, by "
            "language (test sets are not searched on)"
        )
    seeds = project.recipes[target.name].seeds
    tasks = [task_subject(target.name, target.source_name, seed) for seed in seeds]
    subjects = [*map(language_subject, held_out), *tasks]
    made = {subject: workspace.made(subject) for subject in subjects}
    examples = {code: labelled_examples(workspace, target, sources) for code, sources in held_out.items()}
    scores: dict[Setting, dict[str, float]] = {setting: {} for setting in settings}
    for rule in dict.fromkeys(setting.rule for setting in settings):
        scorer = target_scorer(workspace, target, rule=rule)
        for code, found in examples.items():
            show(f"weights {target.name} {code}: {rule}")
            language = workspace.load_sft(made[language_subject(code)])
            for setting in (s for s in settings if s.rule == rule):
                by_seed = []
                for subject in tasks:
                    sft = workspace.load_sft(made[subject])
                    parts: list[Part] = [(language, setting.language), (sft, setting.task)]
                    correct, counted = scorer.outcomes(found, parts).sum(axis=0)
                    by_seed.append(float(correct / counted))
                scores[setting][code] = fmean(by_seed)
    sentences = {code: len({example.sentence for example in found}) for code, found in examples.items()}
    result = WeightSearch(target.name, OBJECTIVES[target.objective].metric, scores, sentences)
    _log(workspace, result, {subject: workspace.plan.step(subject).product.key for subject in subjects})
    return result


def _log(workspace: Workspace, result: WeightSearch, upstream: dict[str, str]) -> None:
    """Log the table in a run of its own, unless this very one is there."""
    target = workspace.project.target_tasks[result.target_task]
    name = f"weights {result.target_task}"
    parts = {
        "kind": "weights",
        "procedure": VERSION,
        "upstream": upstream,
        "dev": {code: [fingerprint(source) for source in target.held_out(code)] for code in result.sentences},
        "settings": [[s.rule, s.language, s.task] for s in result.scores],
    }
    key = hash_json(parts)
    with workspace.claim(key, name) as existing:
        if existing is None:
            with workspace.tracker.open_run(
                NewRun(name=name, kind="weights", subject=name, key=key, parts=parts)
            ) as run:
                best = result.best
                run.log_params({"rule": best.rule, "language_weight": best.language, "task_weight": best.task})
                run.log_metrics({"score": result.mean(best)})
                run.log_text(result.markdown(), "table.md")
                run.log_text(result.csv(), "table.csv")
                run.log_text(json.dumps(result.as_rows(), indent=2) + "\n", "table.json")
    create_markdown_artifact(
        markdown=result.markdown(), key=artifact_key(workspace.project.name, name), description=name
    )
