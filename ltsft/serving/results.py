"""What an answer says, for each kind of target task; the shape that goes over HTTP."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = [
    "EntitiesResult",
    "Entity",
    "LabelResult",
    "ParsedResult",
    "ParsedWord",
    "Result",
    "SpanResult",
    "TaggedResult",
    "Word",
]


class Word(BaseModel):
    """A word with its label."""

    text: str
    start: int | None = Field(description="offset of its first character; null where the words were sent split")
    end: int | None = Field(description="offset behind its last character")
    label: str | None = Field(description="null where the base has no sub-word for it")
    score: float | None = Field(description="probability of the label")


class ParsedWord(Word):
    """A word with its head; the label is its relation to the head."""

    label: str
    score: float = Field(description="probability of the head, times that of the relation to it")
    head: int = Field(description="number of its head among the words, from 1; 0 for the root")


class Entity(BaseModel):
    """A named entity."""

    text: str
    label: str = Field(description="its type")
    start_word: int = Field(description="number of its first word, from 0")
    end_word: int = Field(description="number of the word behind its last one")
    start: int | None = Field(description="offset of its first character; null where the words were sent split")
    end: int | None = Field(description="offset behind its last character")
    score: float | None = Field(description="the lowest probability of the labels of its words")


class Result(BaseModel):
    """The answer to one text; each kind of target task has one of its own."""

    pieces: int = Field(default=1, description="more than 1 where the text was longer than the base takes at once")
    is_cut: bool = Field(default=False, description="whether something was left out because it did not fit")

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe all kinds there are, where any of them may stand."""
        if cls is not Result:
            return handler(schema)
        return {"anyOf": [handler(kind.__pydantic_core_schema__) for kind in cls.__subclasses__()]}


class TaggedResult(Result):
    """The words of a text, labelled."""

    words: list[Word]

    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""
        return _word_columns(self.words)


class EntitiesResult(Result):
    """The named entities of a text."""

    entities: list[Entity]
    words: list[Word] = Field(description="with their labels: B- begins an entity, I- continues it, O is in none")

    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""
        named = ("text", "label", "start_word", "end_word")
        entities = [entity.model_dump(include=set(named)) for entity in self.entities]
        return {**_word_columns(self.words), "entities": entities}


class ParsedResult(Result):
    """The dependency tree of a sentence."""

    words: list[ParsedWord]

    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""
        return {**_word_columns(self.words), "heads": [word.head for word in self.words]}


class LabelResult(Result):
    """The label of a text, or of a pair."""

    label: str
    score: float = Field(description="probability of the label")
    scores: dict[str, float] = Field(description="probability of each label")

    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""
        return {"label": self.label, "score": self.score}


class SpanResult(Result):
    """The answer to a question: a part of its context."""

    text: str = Field(description="empty where the context holds nothing that could answer")
    start: int = Field(description="offset of its first character in the context")
    end: int = Field(description="offset behind its last character")
    score: float = Field(description="probability of its start, times that of its end, within its piece of the context")

    def columns(self) -> dict[str, Any]:
        """Give it as a row of a table."""
        return {"answer": self.text, "start": self.start, "end": self.end, "score": self.score}


def _word_columns(words: list[Any]) -> dict[str, Any]:
    return {
        "words": [word.text for word in words],
        "labels": [word.label for word in words],
        "scores": [word.score for word in words],
    }
