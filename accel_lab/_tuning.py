"""A search over the knobs of any technique: its trials run on processes here or on a cluster, and
each is written down as it comes.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from accel_lab import catalog
from accel_lab.search import Range, Space, best, grid, random_points, rungs
from accel_lab.workbench.knobs import Dial, KnobError, no_such
from accel_lab.workbench.tasks import WorkerDied
from accel_lab.workbench.tasks.cluster import on_cluster
from accel_lab.workbench.tasks.journal import Journal
from accel_lab.workbench.tasks.processes import on_processes

Strategy = Literal["grid", "random", "halving"]


@dataclass(frozen=True)
class Trial:
    """A run of a technique for so many steps, and the last value that its metric had.

    score: None where there is none, as ``failure`` says in one line.
    """

    technique: str
    knobs: dict[str, Any]
    metric: str
    steps: int
    score: float | None = None
    failure: str = ""

    @property
    def key(self) -> str:
        """What makes it another trial."""
        return json.dumps([self.technique, self.knobs, self.metric, self.steps], sort_keys=True)


def try_out(trial: Trial) -> Trial:
    """Run it in this process, on one thread. Whatever goes wrong is its result."""
    torch.set_num_threads(1)
    experiment, score, seen = catalog.experiment(trial.technique), None, set()
    try:
        with closing(experiment.run(experiment.Knobs(**trial.knobs))) as steps:
            for step in islice(steps, trial.steps):
                score = step.metrics.get(trial.metric, score)
                seen |= step.metrics.keys()
    except Exception as error:  # whatever it is, the search goes on without this candidate
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        return replace(trial, failure=failure)
    if score is None:
        return replace(trial, failure=no_such("metric", trial.metric, sorted(seen)))
    return replace(trial, score=score) if math.isfinite(score) else replace(trial, failure="NaN")


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    varied: the knobs that candidates differ in, each as a range · fixed: knob → value, the same for
    all · metric: of the experiment's Steps · least: whether less of it is better · steps: of the
    longest trials · strategy: ``halving`` begins with steps/η^(number of cuts), and survivors begin
    anew in every rung, for no process keeps a network.
    """

    technique: str
    varied: Space
    metric: str
    least: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    strategy: Strategy = "random"
    candidates: int = 27
    steps: int = 200
    eta: int = 3
    seed: int = 0

    def plan(self) -> list[tuple[int, int]]:
        """(candidates, steps) of each rung."""
        number = len(self.trials())
        if self.strategy != "halving":
            return [(number, self.steps)]
        cuts = 0
        while min(number, self.steps) >= self.eta ** (cuts + 1):
            cuts += 1
        return rungs(number, self.steps, self.eta, self.steps // self.eta**cuts)

    def trials(self) -> list[Trial]:
        """All candidates, as they begin."""
        if self.strategy == "grid":
            side = round(self.candidates ** (1 / len(self.varied)))
            points = grid(self.varied, dict.fromkeys(self.varied, max(1, side)))
        else:
            points = random_points(self.varied, self.candidates, random.Random(self.seed))
        knobs = catalog.experiment(self.technique).Knobs
        dials = {dial.name: dial for dial in knobs.dials()}
        chosen = [
            dict(self.fixed) | {name: _value(dials[name], one[name]) for name in one}
            for one in points
        ]
        knobs(**chosen[0])  # a fixed one that cannot be is refused before anything runs
        made = [Trial(self.technique, one, self.metric, self.steps) for one in chosen]
        return list({one.key: one for one in made}.values())  # a grid can repeat a choice


def range_of(dial: Dial, ends: Sequence[float] = ()) -> Range:
    """Where to look for a knob: between its own ends, or those given. A choice is one of equal
    parts. Raises KnobError where it has no ends.
    """
    if dial.choices or dial.type is bool:
        return Range(0, len(dial.values()))
    if dial.type not in (int, float):
        raise KnobError(dial.name, "is not a number nor a choice, so there is nothing to vary")
    low, high = ends or (dial.low, dial.high)
    if low is None or high is None:
        raise KnobError(dial.name, f"has no upper end; give both, as in {dial.name}=1:100")
    try:
        return Range(low, high, dial.log)
    except ValueError as error:
        raise KnobError(dial.name, str(error)) from None


def _value(dial: Dial, drawn: float) -> Any:
    if dial.choices or dial.type is bool:
        values = dial.values()
        return values[min(int(drawn), len(values) - 1)]
    return dial.within(round(drawn) if dial.type is int else drawn)


def run(
    search: Search, journal: Path, jobs: int | None = None, scheduler: str = ""
) -> Generator[Trial, None, None]:
    """Try the candidates, rung by rung, and yield each trial as it ends; those in the journal are
    yielded without running again. Raises OSError, NoCluster, ValueError where all have failed.
    """
    book: Journal[Trial] = Journal(journal, asdict, lambda line: Trial(**line), lambda one: one.key)
    left = search.trials()
    for number, steps in search.plan():
        asked = [replace(one, steps=steps, score=None, failure="") for one in left[:number]]
        known = {one.key: book.entries[one.key] for one in asked if one.key in book.entries}
        yield from known.values()
        tasks = [(one, (one,)) for one in asked if one.key not in known]
        spread = on_cluster(try_out, tasks, scheduler) if scheduler else None
        with closing(spread or on_processes(try_out, tasks, jobs)) as ended:
            for one, outcome in ended:
                if isinstance(outcome, WorkerDied):
                    outcome = replace(one, failure=str(outcome))
                else:
                    book.add(outcome)  # a death may have had another cause: tried again next time
                known[one.key] = outcome
                yield outcome
        left = ranked([known[one.key] for one in asked], search.least)


def ranked(trials: Sequence[Trial], least: bool) -> list[Trial]:
    """Best first; those without a score last. Raises ValueError where none has one."""
    sign = -1.0 if least else 1.0
    scores = torch.tensor([math.nan if one.score is None else sign * one.score for one in trials])
    if scores.isnan().all():
        raise ValueError(f"all {len(trials)} candidates failed; the first one: {trials[0].failure}")
    return [trials[place] for place in best(scores, len(trials)).tolist()]


def asked(options: Any) -> Search:
    """The search that a command line asks for. Raises KnobError."""
    dials = {dial.name: dial for dial in catalog.experiment(options.technique).Knobs.dials()}
    varied, fixed = {}, {}
    for one in options.vary:
        name, _, ends = one.partition("=")
        varied[name] = range_of(_known(name, dials), _ends(name, ends) if ends else ())
    for one in options.set:
        name, _, value = one.partition("=")
        fixed[_known(name, dials).name] = value
    if twice := varied.keys() & fixed.keys():
        raise KnobError(min(twice), "is both varied and set")
    return Search(
        options.technique,
        varied,
        options.metric,
        least=not options.most,
        fixed=fixed,
        strategy=options.strategy,
        candidates=options.candidates,
        steps=options.steps,
        eta=options.eta,
        seed=options.seed,
    )


def _known(name: str, dials: Mapping[str, Dial]) -> Dial:
    if name not in dials:
        raise KnobError("", no_such("knob", name, dials))
    return dials[name]


def _ends(name: str, told: str) -> tuple[float, float]:
    try:
        low, high = map(float, told.split(":"))
    except ValueError:
        raise KnobError(name, f"{told!r} are not two numbers, as in {name}=1:100") from None
    return low, high


def shown(search: Search, found: Generator[Trial, None, None], as_json: bool) -> Iterator[str]:
    """Lines to print: each trial where JSON is wanted, else the best at the end, and a bar on the
    way.
    """
    total, longest, rest = sum(number for number, _ in search.plan()), [], Counter()
    for trial in tqdm(found, total=total, unit=" trials", disable=not sys.stderr.isatty()):
        if as_json:
            yield json.dumps(asdict(trial))
        if trial.steps == search.steps:
            longest.append(trial)
        rest[trial.failure] += 1
    if as_json:
        return
    for failure, times in rest.items():
        if failure:
            yield f"{times} without a score: {failure}"
    winner, *_ = ranked(longest, search.least)
    varied = {name: winner.knobs[name] for name in search.varied}
    values = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in varied.items()
    )
    reached = f"{search.metric} {winner.score:.4g}"
    yield f"{total} trials; the best of the longest has {reached}: {values}"
