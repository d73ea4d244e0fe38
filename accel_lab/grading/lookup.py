"""Exercises by technique, and by the name of the function that is asked for."""

from __future__ import annotations

from accel_lab import catalog
from accel_lab.exercises import Exercise


def exercises(technique: str) -> list[Exercise]:
    """The exercises of a technique's chapter, in the order in which they are written."""
    module = catalog.exercises_of(technique)
    return [thing for thing in vars(module).values() if isinstance(thing, Exercise)]


def find(name: str) -> Exercise:
    """The exercise that asks for this function. Raises ValueError, one line, when none does."""
    known = {one.name: one for word in catalog.with_exercises() for one in exercises(word)}
    if name not in known:
        raise ValueError(
            f"no exercise asks for a function called {name!r}; there are: {', '.join(known)}"
        )
    return known[name]
