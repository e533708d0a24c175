"""What goes over HTTP: requests, answers, and the one shape of every error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ltsft.serving.answers import Input
from ltsft.serving.service import Answer

__all__ = [
    "AddressedText",
    "AddressedWords",
    "Answers",
    "BatchAnswer",
    "BatchRequest",
    "Model",
    "Models",
    "Problem",
    "ProblemBody",
    "Request",
    "Result",
    "Text",
    "Texts",
    "Word",
    "Words",
]

_CONTROL = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"
_VISIBLE = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
"""At least one character that is not white space, and no control characters but tab and line breaks."""

String = Annotated[str, Field(min_length=1, pattern=_VISIBLE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Body):
    """A text as it is; it is split into words here."""

    text: String = Field(examples=["Hetta er ein roynd."])

    def to_input(self) -> Input:
        """Give what the engine takes."""
        return Input(text=self.text)


class Words(_Body):
    """A text that is split into words already, as a treebank splits it."""

    words: list[String] = Field(min_length=1, examples=[["Hetta", "er", "ein", "roynd", "."]])

    def to_input(self) -> Input:
        """Give what the engine takes."""
        return Input(words=tuple(self.words))


class Texts(_Body):
    """Several texts of one language."""

    inputs: list[Text | Words] = Field(min_length=1)


Request = Text | Words | Texts


class _Addressed(_Body):
    target_task: str = Field(examples=["pos"])
    language: str = Field(examples=["fo"])


class AddressedText(_Addressed, Text):
    """A text with its language."""


class AddressedWords(_Addressed, Words):
    """Words with their language."""


class BatchRequest(_Body):
    """Texts of several languages and target tasks."""

    inputs: list[AddressedText | AddressedWords] = Field(min_length=1)


class Word(BaseModel):
    """A word with its label."""

    text: str
    start: int | None = Field(description="offset of its first character; null where the words were sent split")
    end: int | None = Field(description="offset behind its last character")
    label: str | None = Field(description="null where the base has no sub-word for it")
    score: float | None = Field(description="probability of the label")


class Result(BaseModel):
    """The answer to one text."""

    words: list[Word]
    pieces: int = Field(description="more than 1 where the text was longer than the base takes at once")

    @classmethod
    def of(cls, answer: Answer) -> Result:
        """Turn an answer into its JSON form."""
        words = [
            Word(text=word.text, start=word.start, end=word.end, label=word.label, score=word.score)
            for word in answer.words
        ]
        return cls(words=words, pieces=answer.pieces)


class Answers(BaseModel):
    """The answers to a request, all from one release."""

    target_task: str
    language: str
    version: int = Field(description="of the release that answered")
    composition: str = Field(description="key of its composition")
    results: list[Result]


class BatchAnswer(BaseModel):
    """The answers to a batch, in its order."""

    results: list[Answers]


class Model(BaseModel):
    """A release that answers."""

    target_task: str
    language: str
    version: int
    composition: str
    labels: list[str]
    base: str
    parts: list[str]
    refused_version: int | None = Field(default=None, description="a newer one that could not be loaded")
    refused_reason: str | None = None


class Models(BaseModel):
    """Everything that answers."""

    base: str
    models: list[Model]


class ProblemBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="the same for the same kind of mistake", examples=["unknown_release"])
    message: str = Field(description="what is wrong and what is allowed")


class Problem(BaseModel):
    """Every error has this shape."""

    error: ProblemBody
