"""What a server accepts, how long anything may take, and how much may wait."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Limits"]

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0.0, le=31_536_000.0)]
"""At most a year: what is endless is no limit."""


class Limits(BaseModel):
    """The limits of a server. Each is a setting with the reason for its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: Positive = Field(default=1_000_000, description="a batch of texts is far smaller; more is refused")
    max_texts: Positive = Field(default=64, description="in one request: more would hold up everybody else's")
    max_characters: Positive = Field(default=20_000, description="of a text; some ten pages")
    max_words: Positive = Field(default=4_000, description="of a text, once split into words")
    max_pieces: Positive = Field(
        default=64, description="of all texts in one request, each as long as the base takes at once: seconds of work"
    )
    long_texts: Literal["window", "refuse"] = Field(
        default="window", description="a text longer than the base takes is answered piece by piece, or refused"
    )
    max_waiting: Positive = Field(
        default=512, description="pieces of text in the queue; beyond it the answer is 429 with Retry-After"
    )
    request_seconds: Seconds = Field(default=30.0, description="from arrival to answer; beyond it the answer is 504")
    header_seconds: Seconds = Field(
        default=10.0,
        description="from the start of a connection, and the first byte of a later request, to the end of the headers",
    )
    batch_texts: Positive = Field(default=32, description="pieces in a forward pass; more no longer makes it faster")
    batch_subwords: Positive = Field(default=4_096, description="sub-words in a forward pass, padding included")
    unpacked_megabytes: Annotated[int, Field(ge=0)] = Field(
        default=64,
        description="for SFTs that are kept unpacked, what is in place included; it saves a fifth of a switch",
    )
    patience_seconds: Annotated[float, Field(ge=0.0, le=31_536_000.0)] = Field(
        default=0.25,
        description="how long others wait while the composition that is in place has work: it saves a switch",
    )
    refresh_seconds: Seconds = Field(
        default=10.0, description="between two looks at the registry: a rollback is seen within this and a load"
    )
    drain_seconds: Annotated[float, Field(ge=0.0, le=31_536_000.0)] = Field(
        default=5.0, description="after SIGTERM, not ready but still answering, until balancers have noticed"
    )
    stop_seconds: Seconds = Field(default=30.0, description="after that, until what is in flight has been answered")
