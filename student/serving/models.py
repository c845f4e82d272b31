"""The served students by name: a new one is checked beside the old one, swapped in by one assignment, and back."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import NamedTuple

from distill.runtime.errors import UserError
from student.serving.events import EventStore, GrowingMemory
from student.serving.filters import kept_filters
from student.serving.served_student import LoadSettings, ServedStudent


class _Place(NamedTuple):
    """A student and its memory as far as it has grown; None where events do not reach it."""

    student: ServedStudent
    growing: GrowingMemory | None


class Models:
    """The served students by name; the first is the default.

    Args:
        students: at least one, of different names.
        store: events that their memories count; None: memories stay as they are.
        settings: as for `ServedStudent.load`, for reloads.
        counted_events: the last event that data sets hold of which the store knows nothing yet; None: not said.

    Raises:
        UserError: two students of one name, one that gives no lists, or events of which nobody said whether a student's
            data set holds them.
    """

    def __init__(
        self,
        students: list[ServedStudent],
        store: EventStore | None,
        settings: LoadSettings | None = None,
        counted_events: int | None = None,
    ):
        if len({student.name for student in students}) < len(students):
            raise UserError("Two students have the same folder name; rename one.")
        self.store, self.settings = store, settings or LoadSettings()
        self._lock = threading.Lock()  # of swaps and growth; readers need none
        self._places: dict[str, _Place] = {}
        self._previous: dict[str, _Place] = {}
        for student in students:
            student.check()
            try:
                self._places[student.name] = self._grown(student, None)
            except UnknownDatasetError as error:
                if counted_events is None:
                    raise UserError(f"{error}: say it by --counted_events.") from None
                self._places[student.name] = self._grown(student, counted_events)

    @property
    def students(self) -> dict[str, ServedStudent]:
        """The students that answer now."""
        return {name: place.student for name, place in self._places.items()}

    def get(self, name: str | None) -> ServedStudent:
        """Look up a student.

        Raises:
            UserError: there is none of this name.
        """
        if name is None:
            return next(iter(self._places.values())).student
        if name not in self._places:
            raise UserError(f"No student {name!r} is served; there are {', '.join(self._places)}.")
        return self._places[name].student

    def grow(self) -> int:
        """Count new events into all memories and return the last event's number that all of them hold."""
        with self._lock:
            for name, place in self._places.items():
                if place.growing is not None:
                    self._places[name] = self._caught_up(place)
            grown = (place.growing for place in self._places.values() if place.growing is not None)
            return min((growing.last_event for growing in grown), default=0)

    def reload(self, name: str | None, counted_events: int | None = None) -> ServedStudent:
        """Load a student's folder again, check it, and swap it in; on any error the old one goes on.

        The old student is kept for `rollback`.

        Args:
            name: of the student; None: the first.
            counted_events: the last event that the new student's data set holds; None: as the store knows it.

        Raises:
            UserError: the folder holds no student that gives lists, or one of a data set of which the store does not
                know which events it holds.
            OSError: the disk refuses what the store shall know.
        """
        old = self.get(name)
        student = ServedStudent.load(old.folder, self.settings)
        student.check()
        with self._lock:
            try:
                place = self._grown(student, counted_events)
            except UnknownDatasetError as error:
                raise UserError(f'{error}: say it by "counted_events".') from None
            self._swap(place)
        return place.student

    def rollback(self, name: str | None) -> ServedStudent:
        """Swap the student that the last `reload` replaced in again, with the events since; the folder is not touched.

        A second call swaps the other way.

        Raises:
            UserError: nothing was replaced.
        """
        name = self.get(name).name
        with self._lock:
            if name not in self._previous:
                raise UserError(f"No earlier student {name} is kept: none has been replaced since the start.")
            place = self._previous[name]
            self._swap(self._caught_up(place) if place.growing is not None else place)
            return self._places[name].student

    def _swap(self, place: _Place) -> None:
        old = self._places[place.student.name]
        self._previous[old.student.name] = old._replace(student=replace(old.student, filters=kept_filters()))
        self._places[place.student.name] = place

    def _grown(self, student: ServedStudent, counted_events: int | None) -> _Place:
        """Count the stored events that the student's own memory does not hold yet."""
        memory = student.recommender.transition_memory
        if memory is None or self.store is None:
            return _Place(student, None)
        if counted_events is None:
            counted_events = self.store.counted_events(student.dataset)
        else:
            self.store.set_counted_events(student.dataset, counted_events)
        if counted_events is None:
            last = self.store.last_event
            if last:
                raise UnknownDatasetError(
                    f"The store has {last} events; how many of them does the data set of {student.folder} hold already "
                    f"(0: none, {last}: all)"
                )
            self.store.set_counted_events(student.dataset, counted_events := 0)
        growing = GrowingMemory(memory, student.catalogue.numbers, counted_events)
        return self._caught_up(_Place(student, growing))

    def _caught_up(self, place: _Place) -> _Place:
        before = place.growing.memory
        if place.growing.read(self.store) is before and place.student.recommender.transition_memory is before:
            return place
        recommender = place.student.recommender.with_transition_memory(place.growing.memory)
        return place._replace(student=replace(place.student, recommender=recommender))


class UnknownDatasetError(UserError):
    """Nobody has said which events a student's data set holds."""
