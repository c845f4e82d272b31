"""What the server's requests and answers hold; the limits are checked here, before a student is asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_HISTORIES, MAX_HISTORY, MAX_K, MAX_EVENTS, MAX_FILTER = 64, 1000, 100, 1000, 10_000
ItemId = Annotated[str, Field(min_length=1, max_length=200)]
Places = Annotated[int, Field(ge=1, le=MAX_K, strict=True)]


class Strict(BaseModel):
    """A request: unknown names are refused, so that a misspelt option is never ignored."""

    model_config = ConfigDict(extra="forbid")


class Filter(Strict):
    """Recommend some of the items only: those that meet every condition given."""

    categories: list[ItemId] | None = Field(None, min_length=1, max_length=100)
    items: list[ItemId] | None = Field(None, min_length=1, max_length=MAX_FILTER)


class RecommendRequest(Strict):
    """Histories of item ids, oldest first."""

    histories: list[Annotated[list[ItemId], Field(min_length=1, max_length=MAX_HISTORY)]] = Field(
        min_length=1, max_length=MAX_HISTORIES, examples=[[["D0000", "D0042"]]]
    )
    k: Places = 10
    exclude_bought: bool | None = Field(None, strict=True, description="null: as the student was trained")
    filter: Filter | None = None
    student: ItemId | None = Field(None, description="a served student's name; null: the first")


class Item(BaseModel):
    """A ranked item; `shares` are the parts of its probability that each source gives, where there are memories."""

    item_id: str
    title: str
    score: float
    codewords: list[int] | None = None
    shares: dict[str, float] | None = None


class Lists(BaseModel):
    """One list for each history."""

    student: str
    lists: list[list[Item]]


class SimilarRequest(Strict):
    """An item whose neighbours are wanted."""

    item: ItemId = Field(examples=["D0000"])
    k: Places = 10
    student: ItemId | None = None


class Similar(BaseModel):
    """Neighbours, best first, and what they are near by."""

    student: str
    by: str
    items: list[Item]


class Event(Strict):
    """One interaction; a user's events are in the order in which they were sent."""

    user_id: ItemId = Field(examples=["u1"])
    item_id: ItemId = Field(examples=["D0042"])


class EventsRequest(Strict):
    """New interactions."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


class Acknowledged(BaseModel):
    """The number of events on disk after this request."""

    stored: int
    last_event: int


class ReloadRequest(Strict):
    """Load a served student's folder again, which a newer student has replaced."""

    student: ItemId | None = None


class Problem(BaseModel):
    """What was expected instead."""

    error: str
