"""The matrix as text, as a figure and as a page: what they say, not how many pixels."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ltsft.errors import ConfigError
from ltsft.evaluation.changes import Change, percent, points
from ltsft.evaluation.layout import matrix_markdown, matrix_text, summary
from ltsft.evaluation.matrix import Cell, Matrix, MatrixLanguage
from ltsft.evaluation.paired import Interval
from ltsft.report.figures import Pair, colours, density_figure, interference_figure, matrix_figure
from ltsft.report.page import Note, Plot, html_page

ROWS = {  # language: (task only, composed, seen)
    "fo": (0.40, 0.60, False),
    "mt": (0.50, 0.45, False),
    "myv": (0.41, None, False),
    "uk": (0.70, 0.72, True),
    "en": (0.90, 0.91, True),
}
REASON = "text gate failed: 12 % of the letters are Latn | lines 3, 17: <b>$Это$</b>"


def matrix_of(rows: dict[str, tuple[Any, Any, Any]] = ROWS, *, artificial: bool = False, **more: Any) -> Matrix:
    cells = tuple(
        Cell(
            code,
            "pos",
            score=score,
            std=0.004,
            task_only=alone,
            task_only_std=0.01,
            majority=0.25,
            test_size=12345,
            seeds=3,
            is_source=code == "en",
            reason=REASON if score is None else "",
            gain_interval=Interval(score - alone, score - alone - 0.03, score - alone + 0.03) if score else None,
            **more,
        )
        for code, (alone, score, _) in rows.items()
    )
    languages = tuple(MatrixLanguage(code, f"Name of {code}", seen) for code, (_, _, seen) in rows.items())
    return Matrix(cells, languages, "Toy matrix", artificial, datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "mini & co")


def texts(figure: Figure) -> list[str]:
    shown = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        shown += [text.get_text() for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())]
    return shown


class Page(HTMLParser):
    """Collects tags and text, and fails on markup that is not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_mean_is_over_unseen_languages_that_have_both_scores() -> None:
    mean = matrix_of().mean("pos")
    assert mean is not None
    assert (mean.count, mean.total, mean.judged, mean.wins, mean.losses) == (2, 3, 2, 1, 1)
    assert mean.task_only == pytest.approx(0.45)
    assert mean.score == pytest.approx(0.525)
    assert mean.gain == pytest.approx(0.075)
    assert mean.supervised is None


def test_the_source_language_is_in_no_mean_and_comes_last() -> None:
    seen = matrix_of().mean("pos", seen=True)
    assert seen is not None
    assert seen.score == 0.72
    assert [language.code for language, _ in matrix_of().rows("pos")] == ["fo", "mt", "myv", "uk", "en"]


def test_languages_of_which_nothing_is_known_have_one_mean() -> None:
    matrix = matrix_of({code: (a, s, None) for code, (a, s, _) in ROWS.items()})
    assert [name for name, _ in matrix.means("pos")] == ["mean"]


def test_the_summary_says_the_direction_and_the_gaps() -> None:
    assert summary(matrix_of(), "pos") == [
        "On average over 2 unseen languages, the composed model is 7.5 points higher than the task SFT alone "
        "(52.5 % against 45.0 %). It wins in 1 of 2, loses in 1.",
        "On average over 1 seen language, the composed model is 2.0 points higher than the task SFT alone "
        "(72.0 % against 70.0 %). It is within noise in 1 of 1.",
        "1 language has no score: Name of myv.",
    ]
    lost = summary(matrix_of({"fo": (0.5, 0.4, False)}), "pos")[0]
    assert "10.0 points lower" in lost


def test_a_win_is_told_only_where_the_interval_leaves_out_0() -> None:
    def said(gain: float, interval: Interval | None) -> str:
        matrix = matrix_of({"fo": (0.5, 0.5 + gain, False)})
        return summary(replace(matrix, cells=(replace(matrix.cells[0], gain_interval=interval),)), "pos")[0]

    assert said(-0.004, Interval(-0.004, -0.06, 0.052)).endswith(" It is within noise in 1 of 1.")
    assert said(0.004, Interval(0.004, -0.052, 0.06)).endswith(" It is within noise in 1 of 1.")
    assert said(0.05, Interval(0.05, 0.01, 0.09)).endswith(" It wins in 1 of 1.")
    assert said(0.05, None).endswith("(55.0 % against 50.0 %)."), "a cell that kept no outcomes says nothing"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123, "+12.3"), (-0.004, "−0.4"), (-0.0001, "0.0"), (0.0, "0.0"), (None, "–")]
)
def test_gains_are_in_points_with_a_sign(value: float | None, shown: str) -> None:
    assert points(value) == shown


def test_scores_are_in_percent() -> None:
    assert percent(0.7134, 0.004) == "71.3 ±0.4"
    assert percent(None) == "–"


def test_text_is_aligned_and_names_the_reason_of_a_gap() -> None:
    lines = matrix_text(matrix_of()).splitlines()
    table = [line for line in lines if line.startswith(("language", "Name of", "mean"))]
    assert len({line.index("±") for line in table[1:5]}) == 1
    assert "no score (1)" in table[3]
    assert any(line.startswith("  (1) Name of myv: text gate failed") for line in lines)
    assert "mean, unseen (2 of 3)" in table[6]
    assert "+7.5" in table[6]
    assert "artificial" not in lines[0]


def test_each_place_says_what_changed_with_its_interval_and_what_is_live() -> None:
    lost = Change(0.62, "matrix before", -0.02, Interval(-0.02, -0.031, -0.004))
    noise = Change(0.44, "version 3", 0.01, Interval(0.01, -0.02, 0.04))
    matrix = matrix_of(supervised=0.9)
    cells = {cell.language: cell for cell in matrix.cells}
    cells["fo"] = replace(cells["fo"], before=lost, live=Change(0.62, "version 2", -0.02, is_same=True))
    cells["mt"] = replace(cells["mt"], before=replace(noise, is_same=True), live=noise, history=(0.4, 0.44, 0.45))
    matrix = replace(matrix, cells=tuple(cells.values()))

    text = matrix_text(matrix)
    assert max(map(len, text.splitlines())) <= 80
    assert "62.0 → 60.0  ▼ −2.0 [−3.1, −0.4]\n" in text
    assert "Name of mt, version 3  44.0 → 45.0  ▲ +1.0 [−2.0, +4.0] within noise\n" in text
    assert re.search(r"Name of fo +fo +▼ −2.0 +62.0 ", text)
    assert re.search(r"Name of mt +mt +unseen +12,345 .* −5.0\n", text)
    assert re.search(r"Name of uk +uk +seen +12,345 .* ≈ \+2.0\n", text)
    markdown = matrix_markdown(matrix)
    assert r"| ▼ −2.0 \[−3.1, −0.4\] | 62.0 (version 2) |" in markdown
    assert r"| = unchanged | 44.0 (version 3) ▲ +1.0 \[−2.0, +4.0\] within noise |" in markdown
    page = Page(html_page(matrix))
    assert "▼ −2.0 [−3.1, −0.4]" in page.text
    assert "version 3 ▲ +1.0 [−2.0, +4.0] within noise" in page.text
    [drawn] = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert drawn["aria-label"] == "score over 3 matrices: from 40.0 to 45.0 %"


def test_text_aligns_names_that_are_wide_on_screen() -> None:
    matrix = matrix_of({"ja": (0.4, 0.5, False), "fo": (0.4, 0.5, False)})
    wide = Matrix(
        matrix.cells,
        (MatrixLanguage("ja", "日本語", False), MatrixLanguage("fo", "Føroyskt", False)),
        matrix.title,
        False,
        matrix.created,
    )
    rows = [line for line in matrix_text(wide).splitlines() if "unseen  " in line]
    assert rows[0].index("ja") == rows[1].index("fo") - 3  # three letters that take two places each


def test_markdown_escapes_what_would_break_the_table() -> None:
    text = matrix_markdown(matrix_of(artificial=True))
    assert text.startswith("# Toy matrix (artificial languages)\n")
    assert r"Latn \| lines 3, 17: \<b\>$Это$\</b\>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_a_cell_given_twice_or_of_an_unknown_language_is_refused() -> None:
    matrix = matrix_of()
    with pytest.raises(ConfigError, match="given twice"):
        Matrix((*matrix.cells, matrix.cells[0]), matrix.languages, "t", False, matrix.created)
    with pytest.raises(ConfigError, match="no language of the matrix"):
        Matrix((Cell("xx", "pos"),), matrix.languages, "t", False, matrix.created)


def test_the_matrix_figure_has_every_value_and_hatches_the_gap() -> None:
    figure = matrix_figure(matrix_of(artificial=True))
    shown = texts(figure)
    for expected in ("60.0", "45.0", "+20.0", "−5.0", "(1)", "Name of myv (myv) · unseen", "mean, unseen", "+7.5"):
        assert expected in shown
    assert "Toy matrix (artificial languages)" in shown
    assert any("%" in text and "higher is better" in text for text in shown)
    assert any(text.startswith("(1) Name of myv, pos: text gate failed") for text in shown)
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 2


@pytest.mark.parametrize("count", [3, 40])
def test_no_text_of_the_matrix_figure_leaves_it(count: int) -> None:
    rows = {f"l{i}": (0.4, None if i == 1 else 0.5, i % 3 == 0) for i in range(count)}
    matrix = matrix_of(rows)
    names = tuple(
        MatrixLanguage(row.code, row.code if count == 3 else row.name, row.is_seen) for row in matrix.languages
    )
    title = "A title that is longer than the table under it, of languages with short names, to see where it ends"
    figure = matrix_figure(Matrix(matrix.cells, names, title, False, matrix.created))
    figure.canvas.draw()
    for text in (*figure.texts, *figure.axes[0].texts):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


@pytest.mark.parametrize(("measure", "expected"), [("overlap", "2.0×"), ("sign_conflict", "40"), ("cosine", "−0.20")])
def test_interference_shows_each_pair_once_in_the_unit_of_the_measure(measure: str, expected: str) -> None:
    pairs = [Pair(a, b, 200, 100, 0.4, -0.2) for a, b in itertools.combinations(("fo", "mt", "pos"), 2)]
    shown = texts(interference_figure(pairs, measure, artificial=True))
    assert shown.count(expected) == 3
    assert {"fo", "mt", "pos"} <= set(shown)
    assert any("(artificial languages)" in text for text in shown)


def test_an_overlap_that_chance_cannot_give_is_left_out() -> None:
    shown = texts(interference_figure([Pair("fo", "mt", 0, 0, 0, 0), Pair("fo", "pos", 3, 1, 0, 0)]))
    assert "3.0×" in shown
    assert not any("nan" in text for text in shown)


def test_an_unknown_measure_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="overlap, sign_conflict, cosine, got 'jaccard'"):
        interference_figure([], "jaccard")


def test_density_puts_numbered_layers_in_order() -> None:
    layers = {"10": 0.1, "2": 0.05, "embeddings": 0.01}
    figure = density_figure(layers, overall=0.08, title="language fo", groups={"output.dense.weight": 0.07})
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["embeddings", "layer 2", "layer 10"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([1, 5, 10])
    assert "output.dense.weight" in texts(figure)
    assert "Where the weights changed: language fo" in texts(figure)


def test_text_on_colour_is_readable_everywhere() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for diverging in (False, True):
        for i in range(101):
            low, high = sorted(map(luminance, colours(i / 100, Normalize(0, 1), diverging=diverging)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_page_is_whole_escaped_and_needs_no_network() -> None:
    matrix = matrix_of(artificial=True, interference={"overlap": 0.31, "<i>": 1.0})
    pairs = [Pair("fo", "pos", 2, 1, 0.5, 0.0)]
    html = html_page(
        matrix,
        plots=[
            Plot(matrix_figure(matrix), "Matrix", 'the "whole" matrix'),
            Plot(interference_figure(pairs), "Overlap"),
        ],
        notes=[Note("Plan", ["fo: up to date"]), Note("Erzya", ["<script>alert(1)</script>"], "problem")],
    )
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "b", "i"}
    assert "<script>alert(1)</script>" in page.text
    assert "12 % of the letters are Latn | lines 3, 17: <b>$Это$</b>" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert "http" not in html
    assert "artificial languages: no result about real ones" in page.text
    assert page.text.index("Erzya") < page.text.index("Plan")


def test_the_page_has_a_table_that_a_screen_reader_can_read() -> None:
    page = Page(html_page(matrix_of()))
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert set(scopes) == {"col", "row"}
    assert ("html", {"lang": "en"}) in page.tags
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
    assert "artificial" not in page.text


def test_the_page_shows_overall_interference_and_not_each_layer() -> None:
    measures = {"interference.sign_conflict": 0.4321, "interference.layer.3.overlap": 0.9876}
    page = Page(html_page(matrix_of(interference=measures)))
    assert "sign conflict" in page.text
    assert "0.4321" in page.text
    assert "layer.3" not in page.text


def test_the_same_matrix_gives_the_same_page() -> None:
    def page() -> str:
        matrix = matrix_of()
        return html_page(matrix, plots=[Plot(matrix_figure(matrix), "Matrix")])

    assert page() == page()


def test_an_empty_matrix_is_still_a_page() -> None:
    empty = Matrix((), (), "Nothing yet", False, datetime(2026, 1, 2, tzinfo=UTC))
    assert "Nothing yet" in html_page(empty, plots=[Plot(matrix_figure(empty), "Matrix")])
    assert "Nothing yet" in matrix_text(empty)
    assert interference_figure([]).axes
    assert density_figure({}, overall=0.0, title="empty").axes
