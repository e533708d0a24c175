"""What goes over HTTP: requests, answers, and the one shape of every error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from ltsft.release import Slot
from ltsft.serving.answers import Input
from ltsft.serving.results import Result

__all__ = [
    "AddressedPair",
    "AddressedQuestion",
    "AddressedText",
    "AddressedWords",
    "Answers",
    "BatchAnswer",
    "BatchRequest",
    "Model",
    "Models",
    "Pair",
    "Problem",
    "ProblemBody",
    "Question",
    "Request",
    "Text",
    "Texts",
    "Words",
]

_CONTROL = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"
_VISIBLE = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
"""At least one character that is not white space, and no control characters but tab and line breaks."""

String = Annotated[str, Field(min_length=1, pattern=_VISIBLE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_input(self) -> Input:
        """Give what a reader takes."""
        return Input.of(self.model_dump())


class Text(_Body):
    """A text as it is; where the target task is about words it is split here."""

    text: String = Field(examples=["Hetta er ein roynd."])


class Words(_Body):
    """A text that is split into words already, as a treebank splits it."""

    words: list[String] = Field(min_length=1, examples=[["Hetta", "er", "ein", "roynd", "."]])


class Pair(_Body):
    """Two texts that are classified together, such as a premise and a hypothesis."""

    text: String = Field(examples=["Kettan svevur á borðinum."])
    pair: String = Field(examples=["Kettan er vakin."])


class Question(_Body):
    """A question, and the text that is to hold the answer."""

    question: String = Field(examples=["Hvar svevur kettan?"])
    context: String = Field(examples=["Kettan svevur á borðinum."])


class Texts(_Body):
    """Several texts of one language."""

    inputs: list[Text | Words | Pair | Question] = Field(min_length=1)


Request = Text | Words | Pair | Question | Texts


class _Addressed(_Body):
    target_task: str = Field(examples=["pos"])
    language: str = Field(examples=["fo"])

    @property
    def slot(self) -> Slot:
        """What is asked."""
        return Slot(self.language, self.target_task)


class AddressedText(_Addressed, Text):
    """A text with its language."""


class AddressedWords(_Addressed, Words):
    """Words with their language."""


class AddressedPair(_Addressed, Pair):
    """Two texts with their language."""


class AddressedQuestion(_Addressed, Question):
    """A question with its language."""


class BatchRequest(_Body):
    """Texts of several languages and target tasks."""

    inputs: list[AddressedText | AddressedWords | AddressedPair | AddressedQuestion] = Field(min_length=1)


class Answers(BaseModel):
    """The answers to a request, all from one release."""

    target_task: str
    language: str
    version: int = Field(description="of the release that answered")
    composition: str = Field(description="key of its composition")
    results: list[SerializeAsAny[Result]]


class BatchAnswer(BaseModel):
    """The answers to a batch, in its order."""

    results: list[Answers]


class Model(BaseModel):
    """A release that answers."""

    target_task: str
    language: str
    version: int
    composition: str
    takes: list[str] = Field(description="what a text of it may be", examples=[["text", "words"]])
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
