"""Which misconceptions an answer shows. A hint is given on evidence of its own misconception only.

What an answer returns is taken apart into components: a number, a tensor, a text, each at its
place. A known wrong answer is evident in a component when the answer goes wrong there in the same
way, in every case where that one does. A number or a tensor that is wrong in just the same way is
no coincidence; a yes or no may be, so there everything has to be the same.
"""

from __future__ import annotations

import math
from itertools import combinations

from torch import Tensor

from accel_lab.exercises import Answer, Case, Exercise, Plain, Wrong, changed
from accel_lab.grading.difference import difference
from accel_lab.grading.failure import Failure
from accel_lab.grading.sides import outcome

MOST = 2  # hints
NEAR = 3  # times the tolerance: how alike two wrong results are

Cell = tuple[int, tuple]  # the number of a case, and the place of a component in what was returned
Cells = dict[Cell, object]


def hint(
    exercise: Exercise,
    cases: list[Case],
    got: list[Plain | Failure],
    right: list[tuple[Plain, Plain]],
) -> str:
    """What to tell the learner, a line for each misconception; '' where none is evident."""
    return "\n".join(one.hint for one in _Evidence(exercise, cases, got, right).find())


class _Evidence:
    def __init__(self, exercise: Exercise, cases: list, got: list, right: list):
        self._exercise, self._cases = exercise, cases
        self._right = _taken_apart([want for want, _ in right])
        self._exact = _taken_apart([exact for _, exact in right])
        self._got = _taken_apart(got)
        self._off = self._wrong_cells(self._got)

    def find(self) -> list[Wrong]:
        shown = [(wrong, *self._best(wrong)) for wrong in self._exercise.wrong]
        if not any(explained == self._off and not more for _, explained, more in shown):
            for pair in combinations(self._exercise.wrong, 2):
                both = _combined(*pair)
                if both and self._explains_all(both):
                    return list(pair)
        found, left = [], set(self._off)
        while left and len(found) < MOST:
            wrong, explained, _ = max(shown, key=lambda one: (len(one[1] & left), -one[2]))
            if not explained & left:
                break
            found.append(wrong)
            left -= explained
        return found

    def _best(self, wrong: Wrong) -> tuple[set[Cell], int]:
        ways = [self._explained(self._outcomes(answer)) for answer in wrong.answers]
        return max(ways, key=lambda way: len(way[0]))

    def _outcomes(self, answer: Answer) -> Cells:
        return _taken_apart([outcome(self._exercise, answer, case) for case in self._cases])

    def _explains_all(self, answer: Answer) -> bool:
        """Given up at the first case that it does not explain: there may be a hundred pairs."""
        theirs: Cells = {}
        for number, case in enumerate(self._cases):
            for place, leaf in _leaves(outcome(self._exercise, answer, case), ()):
                theirs[number, place] = leaf
            if not all(self._alike(cell, theirs) for cell in self._off if cell[0] == number):
                return False
        return self._explained(theirs)[0] == self._off

    def _wrong_cells(self, cells: Cells) -> set[Cell]:
        both = {cell for cell in self._right.keys() & cells.keys() if self._differ(cell, cells)}
        return both | (self._right.keys() ^ cells.keys())

    def _differ(self, cell: Cell, cells: Cells) -> bool:
        want, exact = self._right[cell], self._exact.get(cell)
        if isinstance(cells[cell], Failure) or isinstance(want, Failure):
            return cells[cell] is not want
        return bool(difference(cells[cell], want, self._exercise.tolerance, exact))

    def _explained(self, theirs: Cells) -> tuple[set[Cell], int]:
        """Which wrong cells of the answer a known wrong one explains, and how many it has that the
        answer has not.
        """
        off = self._wrong_cells(theirs)
        if not off:
            return set(), 0
        same = {cell for cell in off if self._alike(cell, theirs)}
        if same == off == self._off:
            return same, 0
        explained: set[Cell] = set()
        for place in {place for _, place in same}:
            at = {cell for cell in off if cell[1] == place and not self._crashed(cell)}
            if at <= same and any(_tells(theirs.get(cell)) for cell in at):
                explained |= at
        return explained, len(off - self._off)

    def _crashed(self, cell: Cell) -> bool:
        return (cell[0], ()) in self._got and isinstance(self._got[cell[0], ()], Failure)

    def _alike(self, cell: Cell, theirs: Cells) -> bool:
        if cell not in self._off or (cell in theirs) != (cell in self._got):
            return False
        if cell not in theirs:
            return True
        one, other = self._got[cell], theirs[cell]
        if isinstance(one, Failure) or isinstance(other, Failure):
            return _said(one) == _said(other)
        return not difference(one, other, NEAR * self._exercise.tolerance)


def _combined(one: Wrong, other: Wrong) -> Answer | None:
    """An answer that makes both mistakes, where both are changes of one function."""
    if not one.change or not other.change or one.change[0] is not other.change[0]:
        return None
    try:
        return changed(one.answer, *other.change[1:])
    except (ValueError, SyntaxError):  # both change the same place
        return None


def _said(thing: object) -> tuple | None:
    return (thing.kind, thing.text, thing.rank) if isinstance(thing, Failure) else None


def _taken_apart(outcomes: list) -> Cells:
    return {(i, place): leaf for i, one in enumerate(outcomes) for place, leaf in _leaves(one, ())}


def _leaves(thing: object, place: tuple) -> list[tuple[tuple, object]]:
    if type(thing) is dict or type(thing) is list:
        inner = thing.items() if type(thing) is dict else enumerate(thing)
        return [leaf for key, one in inner for leaf in _leaves(one, (*place, key))]
    return [(place, thing)]


def _tells(leaf: object) -> bool:
    """Whether it is hardly a coincidence that two answers return just this."""
    if type(leaf) is float:
        return math.isfinite(leaf) and leaf not in (0.0, 1.0)
    if type(leaf) is Tensor:
        if not leaf.is_floating_point():
            return leaf.numel() > 3 and len(leaf.unique()) > 2
        return bool(leaf.isfinite().all() and (leaf.frac() != 0).any())
    return type(leaf) is str and len(leaf) > 8
