"""What a person reads on the page of a run in MLflow: what it is, what it was made from, and which flow run made it."""

from __future__ import annotations

from collections.abc import Mapping

from ltsft.project import Product


def describe(product: Product, parents: Mapping[str, str], flow_run: str | None) -> str:
    """Give a run's description, in Markdown, of three lines at most.

    Args:
        product: what the run makes.
        parents: by subject of what it is made from, the address of its run.
        flow_run: address of the flow run, where there is a server that shows it.
    """
    lines = [_what(product)]
    if parents:
        lines.append("Made from " + ", ".join(f"[{subject}]({page})" for subject, page in parents.items()) + ".")
    if flow_run:
        lines.append(f"[Flow run in Prefect]({flow_run}).")
    return "\n\n".join(lines)


def _what(product: Product) -> str:
    if product.kind == "language":
        return f"The language SFT of **{product.language}**, learnt from raw text."
    if product.kind == "cell":
        return (
            f"The score of **{product.target_task}** in **{product.language}**: base + language SFT + task SFT on the "
            "test set, beside the task SFT alone (`gain` is the difference)."
        )
    return (
        f"The task SFT of **{product.target_task}**, learnt from labelled data in **{product.language}** "
        f"with seed {product.seed}."
    )
