"""Every Python example of docstrings and pages runs, and every command on a page is one that there is."""

from __future__ import annotations

import doctest
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from docs.generators.command_line import commands
from ltsft import SFT, Base, Diff, load_base, save_sft

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NOT_RUN_HERE = {
    "ltsft.faces": "it stands in the __init__.py of each package",
    "ltsft.training.wrapper": "examples/train_with_your_trainer.py, which tests/examples runs",
}
"""Modules whose examples are skipped, and where these run."""

UPOS = ("NOUN", "VERB", "PUNCT")
MBERT = r'"google-bert/bert-base-multilingual-cased", "[0-9a-f]{40}"'


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def sft_of(base: Base, kind: Any, subject: str) -> SFT:
    """An SFT that nobody learnt."""
    model = base.token_classifier(UPOS, seed=0)
    inside = dict(model.base_model.named_parameters())
    values = {name: value for name, value in inside.items() if "LayerNorm" not in name}
    diffs = {n: Diff(torch.tensor([0, 3]).int(), torch.tensor([0.1, -0.1]), tuple(v.shape)) for n, v in values.items()}
    own = {id(value) for value in inside.values()}
    head = {name: value.detach() for name, value in model.named_parameters() if id(value) not in own}
    return SFT(
        kind=kind,
        subject=subject,
        base=base.ref,
        diffs=diffs,
        head=head if kind == "task" else {},
        labels=UPOS if kind == "task" else (),
        maskable=sum(diff.size for diff in diffs.values()),
        source_languages=("en",) if kind == "task" else (),
        details={"objective": "pos"} if kind == "task" else {},
    )


@pytest.fixture
def names(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples take for granted, in a folder where their files are."""
    monkeypatch.chdir(tmp_path)
    base = load_base(str(tiny_base))
    faroese, welsh, pos = (sft_of(base, *of) for of in (("language", "fo"), ("language", "cy"), ("task", "pos")))
    for sft in (faroese, pos):
        save_sft(sft, f"sfts/{sft.subject}")
    rows = ["1 Já _ INTJ _ _ 0 root _ _", "2 ! _ PUNCT _ _ 1 punct _ _"]
    Path("fo_oft-ud-test.conllu").write_text("\n".join(rows).replace(" ", "\t") + "\n\n", encoding="utf-8")
    return {
        **{"base": base, "tokenizer": base.tokenizer, "model": base.token_classifier(UPOS, seed=0)},
        **{"faroese": faroese, "welsh": welsh, "pos": pos, "score": lambda model: None},
        **{"language_sft": faroese, "task_sft": pos, "sft": faroese},
    }


def test_the_examples_of_docstrings_run(names: dict[str, Any]) -> None:
    files = [file for file in sorted((ROOT / "ltsft").rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]
    ran, skipped = 0, set()
    for file in files:
        module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for example in doctest.DocTestFinder().find(module, extraglobs=names):
            if any(doctest.SKIP in line.options for line in example.examples):
                skipped.add(module.__name__)
            result = doctest.DocTestRunner(verbose=False).run(example)
            assert not result.failed, example.name
            ran += result.attempted

    assert skipped == NOT_RUN_HERE.keys()
    assert ran > 15


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_examples_of_pages_run_or_are_taken_from_a_script(page: Path, names: dict[str, Any]) -> None:
    scripts = "".join(
        re.sub(r"\s", "", script.read_text(encoding="utf-8")) for script in (ROOT / "examples").glob("*.py")
    )
    for code in blocks(page, "python"):
        if "import " in code:
            here = re.sub(MBERT, repr(names["base"].id), code)
            exec(compile(here, str(page), "exec"), {**names, "__name__": page.stem})
            continue
        lines = [re.sub(r"  # .*|\s", "", line) for line in code.splitlines() if line.strip()]
        assert [line for line in lines if line not in scripts] == []


def commands_of(page: Path) -> list[str]:
    """The calls of `ltsft` in the console examples of a page, without what the shell does with them."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    calls = [re.sub(r"\s#\s.*", "", line).strip().removesuffix("&") for line in lines]
    return [part.strip() for call in calls for part in call.split("&&") if part.strip().startswith("ltsft ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_pages_are_taken_by_the_command_line(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTSFT_PROJECT", "configs/toy.yaml")
    known = commands()
    for call in commands_of(page):
        name, *arguments = shlex.split(call)[1:]
        known[name].make_context(name, [each for each in arguments if each != "..."])  # what does not exist is refused
        assert [each for each in arguments if each.startswith("configs/") and not (ROOT / each).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_options_and_targets_that_pages_name_exist(page: Path) -> None:
    known, text = commands(), page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for call in re.findall(r"`ltsft ([^`]+)`", text):
        name, *words = call.split()
        if not name.startswith("-") and name.islower():
            options = {option for parameter in known[name].params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= {*options, "--help"}
    made = [*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)]
    assert set(made) <= set(targets)
