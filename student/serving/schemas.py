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


class NamedItem(BaseModel):
    """An item's id and title."""

    item_id: str
    title: str


class Prefix(BaseModel):
    """The first codewords of semantic IDs that a level's beams kept, and their probability by the student's network."""

    codewords: list[int]
    probability: float
    items: list[NamedItem] = Field(description="on the last level: the items of this ID")


class ExplainedLists(Lists):
    """Lists with `shares`, and the beams of each history: the kept prefixes of each level, likeliest first."""

    beams: list[list[list[Prefix]]] | None = Field(description="null: an item model, which has no beams")


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
    event_id: ItemId | None = Field(
        None, description="a name of the event's own: sent again, it is acknowledged and not stored twice"
    )


class EventsRequest(Strict):
    """New interactions."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


class Acknowledged(BaseModel):
    """All events of the request are on disk: `stored` are new, `repeated` were there already.

    `last_event` is the number of the last event in the store.
    """

    stored: int
    repeated: int
    last_event: int


class RollbackRequest(Strict):
    """Swap the student that the last reload replaced in again."""

    student: ItemId | None = None


class ReloadRequest(Strict):
    """Load a served student's folder again, which a newer student has replaced."""

    student: ItemId | None = None
    counted_events: int | None = Field(
        None, ge=0, lt=1 << 63, strict=True, description="the last event that the new student's data set holds"
    )


class Swapped(BaseModel):
    """The student that answers now."""

    student: str
    fingerprint: str


class Problem(BaseModel):
    """What was expected instead."""

    error: str
