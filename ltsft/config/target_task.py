"""Target tasks as a project file describes them: labels, labelled data by language, and how languages are mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ltsft.config.frozen import Frozen
from ltsft.config.names import Name
from ltsft.config.source import Source, Sources, as_list

__all__ = ["LabelledData", "Sampling", "TargetTask"]


class LabelledData(Frozen):
    """Labelled sentences of one language: what is trained on, and what chooses the best checkpoint."""

    train: Sources = Field(description="what is learnt from")
    dev: Annotated[tuple[Source, ...], BeforeValidator(as_list)] = Field(
        (), description="chooses the best checkpoint; without it every tenth training sentence does"
    )


class Sampling(Frozen):
    """How often each of several source languages is drawn for a batch: by size and temperature, or by fixed weights."""

    temperature: float = Field(1.0, gt=0, description="shares are size ** (1 / temperature): 1 keeps the sizes")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="by source language, in place of sizes")


class TargetTask(Frozen):
    """A target task: its labels, the source languages it is learnt from and the test data of each language.

    What is allowed beyond this (which labels, which schemes, which columns) is for its objective to say
    (`TargetObjective.problems`); the project file asks it.
    """

    name: Name
    objective: str = Field(description="what kind of task it is, such as pos or ner")
    labels: tuple[str, ...] = Field((), description="the answers that there are; which are allowed, the objective says")
    columns: dict[str, str] = Field({}, description="what the objective calls a column -> its name in the files")
    relabel: dict[str, str] = Field({}, description="a label in the files -> what it is read as")
    sources: dict[str, LabelledData] = Field(min_length=1, description="labelled data by source language")
    order: Literal["joint", "sequential"] = Field(
        "joint", description="several source languages mixed, batch by batch, or one after the other"
    )
    sampling: Sampling = Sampling()
    test: dict[str, Sources] = Field(description="test data by language: each is a cell of the matrix")
    dev: dict[str, Sources] = Field({}, description="what weights of compositions may be searched on, by language")
    supervised: dict[str, LabelledData] = Field(
        {}, description="labelled data of target languages, for an SFT that compositions are compared with"
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("labels must be distinct")
        return labels

    @model_validator(mode="after")
    def _weighs_its_sources(self) -> TargetTask:
        if self.sampling.weights and set(self.sampling.weights) != set(self.sources):
            raise ValueError(
                f"sampling.weights: give one for each source language ({', '.join(self.sources)}), "
                f"got {', '.join(self.sampling.weights)}"
            )
        if self.order == "sequential" and (len(self.sources) == 1 or self.sampling != Sampling()):
            raise ValueError("order: sequential is for two source languages or more, and leaves nothing to sample")
        return self

    @property
    def source_language(self) -> str:
        """The language that the task SFT is learnt from; the first of several."""
        return next(iter(self.sources))

    @property
    def source_name(self) -> str:
        """What the source languages are called together: ``en``, ``en and de`` mixed, ``en then de`` in sequence."""
        return (" then " if self.order == "sequential" else " and ").join(self.sources)

    def labelled(self, language: str) -> Mapping[str, LabelledData]:
        """Give the data of a task SFT by language: of the sources by their name together, else of a supervised one."""
        return self.sources if language == self.source_name else {language: self.supervised[language]}

    def held_out(self, language: str) -> tuple[Source, ...]:
        """Give the labelled data of a language that nothing was trained on and that is not its test set; often none."""
        labelled = {**self.supervised, **self.sources}.get(language)
        return self.dev.get(language) or (labelled.dev if labelled is not None else ())

    def all_sources(self) -> dict[str, Source]:
        """Give every source by its path below the target task."""
        found: dict[str, Source] = {}
        for section, data in (("sources", self.sources), ("supervised", self.supervised)):
            for code, labelled in data.items():
                found |= {f"{section}.{code}.train[{i}]": source for i, source in enumerate(labelled.train)}
                found |= {f"{section}.{code}.dev[{i}]": source for i, source in enumerate(labelled.dev)}
        for split, by_language in (("test", self.test), ("dev", self.dev)):
            for code, sources in by_language.items():
                found |= {f"{split}.{code}[{i}]": source for i, source in enumerate(sources)}
        return found
