"""What a right answer must reach as well: less memory, or less time, both taken from outside."""

from __future__ import annotations

import copy
import random

from accel_lab.exercises import Exercise, LessMemory, LessTime
from accel_lab.grading.difference import difference
from accel_lab.grading.failure import Failure, out_of_memory
from accel_lab.grading.sides import Side, assessed, expected, outcome
from accel_lab.workbench.device import threads
from accel_lab.workbench.measure.comparison import Comparison

# timed; they are doubled, twice at most, while the target lies within what they leave possible
PAIRS = 9
LONGER = 10  # times the tolerance: on a large case far more numbers are added up
TOO_LONG = ("stopped", "timeout")


def missed(exercise: Exercise, side: Side, rng: random.Random) -> tuple[str, str]:
    """('', '') when the target is reached, otherwise why not, in one line, and the hint of what it
    refuses; '' where the reason is another one: a crash, a wrong result on the larger case.
    """
    # One thread, as in a sandbox: waiting for a busy core is no part of an answer.
    with threads(1):
        if isinstance(exercise.target, LessMemory):
            return _too_much_memory(exercise.target, exercise, side, rng)
        with side.beside(exercise.target.refuses.answer) as plain:
            return _too_much_time(exercise.target, exercise, side, plain, rng)


def _too_much_memory(
    target: LessMemory, exercise: Exercise, side: Side, rng: random.Random
) -> tuple[str, str]:
    """In a sandbox the system itself refuses what goes beyond; in practice the process is
    watched.
    """
    case = target.case(rng)
    got = assessed(exercise, side.ask(exercise, case, target.bytes), case)
    if isinstance(got, Failure):
        limit = f" ({target.bytes >> 20} MB)" if got == out_of_memory() else ""
        hint = target.refuses.hint if got.kind == out_of_memory().kind else ""
        return f"right, but on a larger case: {got}{limit}", hint
    want, exact = expected(exercise, case)
    wrong = difference(got, want, LONGER * exercise.tolerance, exact)
    return wrong and f"right, but on a larger case: {wrong}", ""


def _too_much_time(
    target: LessTime, exercise: Exercise, ours: Side, plain: Side, rng: random.Random
) -> tuple[str, str]:
    """In a sandbox the system counts what an answer computes, whatever else runs meanwhile; in
    practice it is the clock. Each pair has a fresh case.
    """
    pairs = []
    for most in (1 + PAIRS, 1 + 2 * PAIRS, 1 + 4 * PAIRS):
        while len(pairs) < most:
            case, seconds, answers = target.case(rng), {}, {}
            for who, other in rng.sample(((ours, plain), (plain, ours)), 2):
                mine = copy.deepcopy(case)
                with other.still():
                    answers[who], seconds[who] = who.ask_again(exercise, mine)
                # the plain version fails only where no time was left for it
                if isinstance(failed := answers[who], Failure):
                    hint = target.refuses.hint if failed.kind in TOO_LONG else ""
                    return f"right, but on a larger case: {failed}", hint
            want = outcome(exercise, exercise.reference, case)
            if wrong := difference(answers[ours], want, exercise.tolerance):
                return f"right, but on a larger case: {wrong}", ""
            pairs.append((seconds[ours], seconds[plain]))
        # the first is a rehearsal
        comparison = Comparison.of(pairs[1:], ("yours", "the plain version"))
        low, high = comparison.interval
        if not low <= target.ratio <= high:
            break
    if comparison.ratio <= target.ratio:
        return "", ""
    said = f"right, but slow: {comparison}; the target is {target.ratio:.3g} ×"
    return said, target.refuses.hint
