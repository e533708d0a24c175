"""What a flow says that could not make all: each cause once, and what waits for it counted."""

from __future__ import annotations

from tasks.orchestration.ends import Shortfall, Why, causes, listed


def test_a_cause_is_told_once_with_what_waits_for_it_counted() -> None:
    refused = Shortfall("language fo: the data did not pass the gate\n  line 3: x", Why.REFUSED)
    failures = {"language fo": refused}
    for number in range(3):
        task = f"task pos fo seed {number}"
        failures[task] = Shortfall("not tried, because language fo", Why.REFUSED, causes({"language fo": refused}))
        cell = f"cell pos x{number}"
        failures[cell] = Shortfall(f"{task}: not tried", Why.REFUSED, causes({task: failures[task]}))

    assert listed(failures).splitlines() == [
        "- language fo: the data did not pass the gate",
        "  line 3: x",
        "  6 products wait for it: task pos fo seed 0, cell pos x0, task pos fo seed 1, cell pos x1 and 2 more",
    ]


def test_one_reason_of_several_products_is_told_once() -> None:
    reason = "task pos en: labels that nobody declared"
    failures = {f"task pos en seed {n}": Shortfall(reason, Why.REFUSED) for n in (1, 2)}
    failures["matrix"] = Shortfall("MLflow is away", Why.UNAVAILABLE)

    assert listed(failures).splitlines() == [
        "- task pos en seed 1, task pos en seed 2: task pos en: labels that nobody declared",
        "- matrix: MLflow is away",
    ]


def test_what_waits_for_something_that_is_not_listed_is_told_itself() -> None:
    left = {"cell pos fo": Shortfall("language fo: too short", Why.REFUSED, ("language fo",))}

    assert listed(left) == "- cell pos fo: language fo: too short"
