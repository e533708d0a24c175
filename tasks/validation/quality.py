"""The validation gate: measures of data against the thresholds of the project file, judged by Great Expectations.

The only importer of great_expectations. It runs in memory, sends nothing anywhere, and writes nothing but the report
(Data Docs) into the folder it is given.
"""

from __future__ import annotations

import html
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ltsft.config import LabelledGate, Source, TargetTask, TextGate, WordLists
from ltsft.data import (
    BAD_ROWS,
    LABELLED_TITLES,
    TEXT_TITLES,
    Line,
    Malformed,
    Measures,
    RowError,
    Sentence,
    by_word_lists,
    measure_labelled,
    measure_text,
    open_lines,
)
from ltsft.errors import ServiceError, ValidationError
from ltsft.objectives import OBJECTIVES, TargetObjective
from ltsft.project import Language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Failure", "GateResult", "validate_labelled", "validate_text"]

# Great Expectations keeps the context in a global, so that only one validation at a time may use it.
_CONTEXT = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """An expectation that the data did not meet.

    Attributes:
        data: what was looked at: the language's code, or the name of the split.
        expectation: what was measured, in words.
        observed: the value.
        allowed: the bound, in words.
        threshold: dotted path of the threshold in the project file.
        reason: why there is such a threshold.
        examples: lines that show it, each with file and line number; empty where no line can.
    """

    data: str
    expectation: str
    observed: float
    allowed: str
    threshold: str
    reason: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f"; such as {'; '.join(self.examples)}" if self.examples else ""
        return (
            f"{self.data}: {self.expectation} is {_number(self.observed)}, allowed {self.allowed} "
            f"({self.threshold}: {self.reason}){shown}"
        )


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        subject: the language's code or the target task's name.
        success: whether every expectation was met.
        failures: those that were not.
        measures: every value that was measured; for labelled data under ``split.measure``.
        report: the first page of the Data Docs.
        tolerated: bad rows that the thresholds let through, in the form of failures.
        notes: what was not looked at.
    """

    subject: str
    success: bool
    failures: tuple[Failure, ...]
    measures: dict[str, float]
    report: Path
    tolerated: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    def message(self) -> str:
        """Say for people what failed, with example lines, or that all is well.

        The first line alone says it all in short: it is what plans and matrices show.
        """
        if self.success:
            passed = f"{self.subject}: the data passed the validation gate"
            if not self.tolerated:
                return "\n".join([passed, *(f"  {note}" for note in self.notes)])
            return "\n".join(
                [f"{passed}, which lets some bad rows through:", *(f"  {each}" for each in self.tolerated)]
            )
        short = "; ".join(self._short(failure) for failure in self.failures)
        lines = [f"{self.subject}: the data did not pass the validation gate: {short}"]
        lines += [f"  {failure}" for failure in self.failures]
        lines.append("  mend the data, or, if the data is right as it is, the threshold in the project file")
        return "\n".join(lines)

    def _short(self, failure: Failure) -> str:
        told = f"{failure.expectation} is {_number(failure.observed)}, allowed {failure.allowed}"
        return told if self.subject.split()[-1] == failure.data else f"{failure.data}: {told}"

    def markdown(self) -> str:
        """Give the same as Markdown, with all measures, for an artifact of the flow run."""
        lines = [f"# Validation of {self.subject}: {'passed' if self.success else 'failed'}", ""]
        if self.success and self.tolerated:
            lines += ["Bad rows that the thresholds let through:", ""]
        for failure in self.failures or self.tolerated:
            lines += [
                f"- **{_escape(failure.data)}: {_escape(failure.expectation)}** is {_number(failure.observed)}, "
                f"allowed {failure.allowed} (`{failure.threshold}`): {_escape(failure.reason)}",
                *(f"    - {_escape(example)}" for example in failure.examples),
            ]
        lines += [f"- {_escape(note)}" for note in self.notes]
        lines += ["", "| measure | value |", "|---|---:|"]
        lines += [f"| `{name}` | {_number(value)} |" for name, value in self.measures.items()]
        return "\n".join(lines) + "\n"

    def raise_for_failure(self) -> None:
        """Stop here if the gate failed.

        Raises:
            ValidationError: with the message.
        """
        if not self.success:
            raise ValidationError(self.message())


@dataclass(frozen=True)
class _Check:
    """A threshold and the measure that it bounds."""

    measure: str
    minimum: float | None
    maximum: float | None
    threshold: str
    title: str
    reason: str

    @property
    def allowed(self) -> str:
        if self.minimum is not None:
            return f"at least {_number(self.minimum)}"
        return f"at most {_number(self.maximum or 0.0)}"


def validate_text(
    language: Language,
    *,
    gate: TextGate,
    tokenizer: PreTrainedTokenizerBase,
    test_sentences: Iterable[str],
    report_folder: Path,
    word_lists: WordLists | None = None,
) -> GateResult:
    """Judge the raw text of a language.

    Args:
        language: its text is read once, line by line.
        gate: the thresholds.
        tokenizer: the base's.
        test_sentences: what the text must not hold: the sentences of the language's test sets, as text or as words
            joined by spaces.
        report_folder: gets the Data Docs; an older report there is replaced.
        word_lists: what tells which language a text is in.

    Returns:
        The result; a failed gate is a result, not an error.

    Raises:
        SourceError: the text cannot be read at all (a missing file, a broken gzip).
        ConfigError: the script is not one that Unicode knows.
    """
    own = word_lists.names.get(language.code, "") if word_lists is not None else ""
    measures = measure_text(
        _numbered_lines(language.text),
        gate,
        script=language.script,
        tokenizer=tokenizer,
        test_sentences=test_sentences,
        identify=by_word_lists(word_lists.folder, own, word_lists.sisters.get(language.code, ()))
        if word_lists is not None and own
        else None,
        language=own,
    )
    titles = {name: title.format(gate=gate, script=language.script) for name, title in TEXT_TITLES.items()}
    checks = _checks(gate, titles, prefix="gates.text")
    failures = _judge({language.code: measures}, checks, name=f"text-{language.code}", folder=report_folder)
    known = {name: value for name, value in measures.values.items() if value is not None}
    notes = () if own else (f"which language it is was not looked at: word_lists.names.{language.code} names no list",)
    return GateResult(language.code, not failures, failures, known, report_folder / "index.html", notes=notes)


def validate_labelled(
    task: TargetTask,
    rows_by_split: Mapping[str, Iterable[Any]],
    *,
    gate: LabelledGate,
    report_folder: Path,
    subject: str | None = None,
) -> GateResult:
    """Judge labelled data of a target task.

    Args:
        task: its objective says what the labels are, what its rows hold and which measures apply.
        rows_by_split: name of the split -> rows, and a `RowError` for each that is malformed; training data first: each
            split is compared with those before it. Only splits whose name ends in ``train`` must have (most of) the
            labels.
        gate: the thresholds.
        report_folder: gets the Data Docs; an older report there is replaced.
        subject: what the result calls the data; the name of the target task if not given.

    Returns:
        The result; a failed gate is a result, not an error.
    """
    subject = subject or task.name
    objective = OBJECTIVES[task.objective]
    splits = {name: _sentences(rows, objective) for name, rows in rows_by_split.items()}
    labels, background = objective.label_set(task), objective.background
    measured = measure_labelled(splits, gate, labels=labels, measures=objective.measures, background=background)
    titles = {name: title.format(gate=gate) for name, title in LABELLED_TITLES.items()}
    checks = _checks(gate, titles, prefix="gates.labelled")
    failures = _judge(measured, checks, name=f"labelled-{subject}", folder=report_folder)
    failed = {(failure.data, failure.threshold) for failure in failures}
    tolerated = tuple(
        _failure(check, split, measures)
        for split, measures in measured.items()
        for check in checks
        if check.measure in BAD_ROWS and measures.values[check.measure] and (split, check.threshold) not in failed
    )
    known = {
        f"{split}.{name}": value
        for split, measures in measured.items()
        for name, value in measures.values.items()
        if value is not None
    }
    return GateResult(subject, not failures, failures, known, report_folder / "index.html", tolerated)


def _numbered_lines(sources: Iterable[Source]) -> Iterator[Line]:
    for source in sources:
        name = PurePosixPath(source.location).name
        for number, text in enumerate(open_lines(source, errors="surrogateescape"), start=1):
            yield Line(name, number, text)


def _sentences(rows: Iterable[Any], objective: type[TargetObjective]) -> Iterator[Sentence | Malformed]:
    for row in rows:
        if isinstance(row, RowError):
            yield Malformed(PurePosixPath(row.source).name, row.line, row.reason)
        else:
            yield objective.sentence(row)


def _checks(gate: TextGate | LabelledGate, titles: Mapping[str, str], *, prefix: str) -> list[_Check]:
    """Turn each ``min_`` or ``max_`` field of a gate into a check of the measure that it names."""
    checks = []
    for field, info in type(gate).model_fields.items():
        bound, _, measure = field.partition("_")
        if bound in ("min", "max"):
            value = float(getattr(gate, field))
            minimum, maximum = (value, None) if bound == "min" else (None, value)
            checks.append(
                _Check(measure, minimum, maximum, f"{prefix}.{field}", titles[measure], info.description or "")
            )
    return checks


def _table(measured: Mapping[str, Measures], checks: Sequence[_Check]) -> Any:
    import pandas as pd

    table = pd.DataFrame([{"data": data, **measures.values} for data, measures in measured.items()])
    return table.astype({check.measure: "float64" for check in checks})


def _judge(
    measured: Mapping[str, Measures], checks: Sequence[_Check], *, name: str, folder: Path
) -> tuple[Failure, ...]:
    """Let Great Expectations compare a table, one row for each split or text, and write its report.

    A measure that does not apply is empty in the table, and an empty cell meets any expectation.
    """
    with _CONTEXT:
        import great_expectations as gx  # loads for seconds; nothing but a validation should wait for it
        from great_expectations.checkpoint.actions import UpdateDataDocsAction
        from great_expectations.core.run_identifier import RunIdentifier
        from great_expectations.expectations.core.expect_column_values_to_be_between import (
            ExpectColumnValuesToBeBetween,
        )

        _remove_report(folder)
        context = gx.get_context(mode="ephemeral", project_config=_context_config(folder))
        table = _table(measured, checks)
        batch = (
            context.data_sources.add_pandas("ltsft")
            .add_dataframe_asset(_file_name(name))
            .add_batch_definition_whole_dataframe("all")
        )
        expectations = [
            ExpectColumnValuesToBeBetween(
                column=check.measure,
                min_value=check.minimum,
                max_value=check.maximum,
                description=_description(check, measured),
                meta={"threshold": check.threshold},
            )
            for check in checks
        ]
        suite = context.suites.add(gx.ExpectationSuite(name=_file_name(name), expectations=expectations))
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=_file_name(name), data=batch, suite=suite)
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=_file_name(name),
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="report")],
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": ["data"],
                    "return_unexpected_index_query": False,
                },
            )
        )
        _tell_time_zone()
        _remember_templates()
        outcome = checkpoint.run(batch_parameters={"dataframe": table}, run_id=RunIdentifier(run_name=_file_name(name)))
        _check_report(folder)
        _drop_decoration(folder)
    results = [result for run in outcome.run_results.values() for result in run.results]
    by_threshold = {check.threshold: check for check in checks}
    return tuple(
        failure for result in results if not result.success for failure in _failures(result, by_threshold, measured)
    )


def _failures(result: Any, checks: Mapping[str, _Check], measured: Mapping[str, Measures]) -> Iterator[Failure]:
    check = checks[result.expectation_config.meta["threshold"]]
    rows = result.result.get("unexpected_index_list")
    if not rows:
        raise ServiceError(
            f"Great Expectations could not judge {check.measure} ({check.threshold}): {result.exception_info}"
        )
    for row in rows:
        yield _failure(check, str(row["data"]), measured[str(row["data"])])


def _failure(check: _Check, data: str, measures: Measures) -> Failure:
    """Say what was measured beside what is allowed."""
    observed = float(measures.values[check.measure] or 0.0)
    examples = measures.examples.get(check.measure, ())
    return Failure(data, check.title, observed, check.allowed, check.threshold, check.reason, examples)


def _description(check: _Check, measured: Mapping[str, Measures]) -> str:
    """Say in the report what is expected and why, and show lines; the renderer takes it for HTML."""
    lines = [f"{check.title}: {check.allowed} ({check.threshold})", f"Why: {check.reason}."]
    for data, measures in measured.items():
        value = measures.values[check.measure]
        lines.append(f"{data}: {'does not apply' if value is None else _number(value)}")
        lines += [f"{data}: {place}" for place in measures.examples.get(check.measure, ())]
    return "\n".join(html.escape(line).replace("$", "&#36;") for line in lines)


def _context_config(folder: Path) -> Any:
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    site = {
        "class_name": "SiteBuilder",
        "site_name": "Validation gate",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "site_section_builders": {"expectations": "none", "profiling": "none"},  # all of it is in the validations
    }
    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"report": site},
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )


def _remove_report(folder: Path) -> None:
    """Remove what an earlier report left, and nothing else that may be in the folder."""
    (folder / "index.html").unlink(missing_ok=True)
    for part in ("expectations", "validations", "static"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _tell_time_zone() -> None:
    """Give the report a time zone where TZ is a rule, such as UTC0; what it asks knows names of zones alone."""
    import tzlocal
    from great_expectations.render.renderer import site_index_page_renderer as renderer

    try:
        tzlocal.get_localzone()
    except (LookupError, ValueError, OSError):
        offset = datetime.now().astimezone().tzinfo
        vars(renderer)["tzlocal"] = SimpleNamespace(get_localzone=lambda: offset)


@cache
def _remember_templates() -> None:
    """Let all pages share compiled templates: each has an environment of its own, and compiling took a third."""
    import jinja2
    from great_expectations.render.view import view

    class Memory(jinja2.BytecodeCache):
        def __init__(self) -> None:
            self._known: dict[tuple[str, str], bytes] = {}

        def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
            if (code := self._known.get((bucket.key, bucket.checksum))) is not None:
                bucket.bytecode_from_string(code)

        def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
            self._known[bucket.key, bucket.checksum] = bucket.bytecode_to_string()

    vars(view)["Environment"] = partial(jinja2.Environment, bytecode_cache=Memory())


def _check_report(folder: Path) -> None:
    """Look at the report: Great Expectations logs why it could not write a page, and goes on.

    Raises:
        ServiceError: a page is missing or empty.
    """
    pages = [folder / "index.html", *folder.glob("validations/**/*.html")]
    bad = [page for page in pages if not page.is_file() or not page.stat().st_size]
    if bad or len(pages) < 2:
        raise ServiceError(
            f"Great Expectations could not write its report to {folder} ({len(bad)} empty pages); its log says why; "
            "look at TZ, the locale and the space on the disk"
        )


def _drop_decoration(folder: Path) -> None:
    """Drop four megabytes of fonts and animations, so that each report can be kept with its run."""
    shutil.rmtree(folder / "static" / "fonts", ignore_errors=True)
    for image in (folder / "static" / "images").glob("*.gif"):
        image.unlink()


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4g}"


def _escape(text: str) -> str:
    """Keep Markdown and HTML that may be in the data from taking effect."""
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", html.escape(text, quote=False))
