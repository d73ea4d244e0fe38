"""The command line: list the techniques, run one, search its knobs, grade a class, or see what this
machine has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Generator, Iterator
from itertools import islice
from math import isnan
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from accel_lab import catalog

if TYPE_CHECKING:
    from accel_lab.workbench.knobs import Knobs
    from accel_lab.workbench.step import Step

COURSE = Path(__file__).parents[1] / "course"


class Parser(argparse.ArgumentParser):
    """argparse, with one line on stderr for whatever is wrong, and exit 2."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def fail(message: str) -> NoReturn:
    print(f"accel_lab: {message}", file=sys.stderr)
    raise SystemExit(2)


def show_list() -> None:
    known = catalog.techniques()
    for name, line in known.items():
        print(f"{name:{max(map(len, known))}}  {line}")


def run(name: str, arguments: list[str]) -> None:
    from accel_lab.workbench.knobs import KnobError, no_such
    from accel_lab.workbench.ranks.launch import RankFailed

    if name not in (known := catalog.techniques()):
        fail(no_such("technique", name, known))
    experiment = catalog.experiment(name)
    parser = _run_parser(name, experiment.Knobs)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        fail(no_such("option", unknown[0], parser._option_string_actions))
    given = {dial.name: getattr(options, dial.name) for dial in experiment.Knobs.dials()}
    given = {name: value for name, value in given.items() if value is not None}
    for limit in ("steps", "seconds"):
        if (most := getattr(options, limit)) is not None and not most >= 0:
            fail(f"--{limit} {most}: at least 0")
    try:
        _run(experiment.run(experiment.Knobs(**given)), options)
    except (KnobError, ValueError, FloatingPointError, ModuleNotFoundError, OSError) as error:
        fail(str(error))
    except RankFailed as error:  # with the rank's own traceback, which says more than ours
        print(f"accel_lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _run_parser(name: str, knobs: type[Knobs]) -> Parser:
    parser = Parser(prog=f"python -m accel_lab run {name}", allow_abbrev=False)
    parser.add_argument(
        "--jsonl", action="store_true", help="print each Step as one line of JSON, and nothing else"
    )
    parser.add_argument("--steps", type=int, help="end after so many updates")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="end after so many seconds (%(default)g)"
    )
    group = parser.add_argument_group("knobs")
    for dial in knobs.dials():
        values = "|".join(map(str, dial.choices)) or dial.type.__name__
        is_switch: dict[str, Any] = {"nargs": "?", "const": "true"}
        kind = is_switch if dial.type is bool else {"metavar": values}
        described = dial.description.replace("%", "%%")
        group.add_argument(
            f"--{dial.name.replace('_', '-')}", help=f"{described} ({dial.default})", **kind
        )
    return parser


def _run(steps: Generator[Step, None, None], options: argparse.Namespace) -> None:
    """Consume a run until its end, the limits or Ctrl-C; then the summary."""
    _end_on_sigterm()
    seen = []
    try:
        for step in _limited(steps, options):
            if options.jsonl:
                print(step.to_json(), flush=True)
            seen.append((step.throughput, step.metrics))
    except BrokenPipeError:  # the reader of the lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass
    finally:
        steps.close()
    if seen and not options.jsonl:
        known = [speed for speed, _ in seen[1:] or seen if not isnan(speed)]
        speed = f"median {median(known):,.0f} samples/s" if known else "too short for this clock"
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in seen[-1][1].items())
        print(f"{len(seen)} updates, {speed}; at the end {metrics}")


def _end_on_sigterm() -> None:
    """Ask for an end as Ctrl-C does, so that ranks and sandboxes end too."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _limited(steps: Iterator, options: argparse.Namespace) -> Iterator:
    from tqdm import tqdm

    bar = tqdm(
        islice(steps, options.steps),
        total=options.steps,
        unit=" updates",
        disable=options.jsonl or not sys.stderr.isatty(),
    )
    end = None
    for step in bar:
        yield step
        # From the first update on: what comes before is preparation.
        end = end or perf_counter() + options.seconds
        if options.steps is None and perf_counter() >= end:
            return


def doctor() -> None:
    """What this machine has, what is missing and how to get it."""
    from accel_lab.workbench.measure.machine import Machine

    print(Machine())


def _grade(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m accel_lab grade",
        allow_abbrev=False,
        description="Grade notebooks: a mark each, with reasons.",
    )
    parser.add_argument(
        "submissions",
        nargs="+",
        type=Path,
        help="notebooks (Ann_11_accumulation.ipynb), or folders, one a learner",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("grades.csv"),
        help="the table; pages for all go beside it (%(default)s)",
    )
    parser.add_argument(
        "--jsonl", action="store_true", help="print each result as one line of JSON as it comes"
    )
    parser.add_argument("--jobs", type=int, help="how many at once (as many as there are cores)")
    parser.add_argument(
        "--scheduler",
        default="",
        metavar="tcp://…",
        help="spread over the workers of this dask.distributed scheduler",
    )
    parser.add_argument(
        "--again", action="store_true", help="grade all anew, on the same cases as the time before"
    )
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        fail(
            "grading isolates what learners hand in, and that needs Linux; "
            "in a notebook, check() works everywhere"
        )
    if options.jobs is not None and options.jobs < 1:
        fail(f"--jobs {options.jobs}: at least 1")

    from accel_lab.grading.factory import SandboxFactory
    from accel_lab.grading.failure import GraderFault
    from accel_lab.grading.submissions import NothingToGrade, find

    try:
        submissions, notes = find(options.submissions, catalog.with_exercises())
    except NothingToGrade as error:
        fail(str(error))
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    _end_on_sigterm()
    with contextlib.ExitStack() as ends:
        # It imports torch while we do.
        factory = None if options.scheduler else ends.enter_context(SandboxFactory())
        from accel_lab.grading.command import Stopped, grade

        done, isolated = 0, True
        graded = grade(
            submissions,
            options.out,
            factory,
            jobs=options.jobs,
            scheduler=options.scheduler,
            again=options.again,
        )
        try:
            for entry in graded:
                done, isolated = done + 1, isolated and entry["isolated"]
                if options.jsonl:
                    print(json.dumps(entry), flush=True)
            graded.close()
        except (Stopped, GraderFault) as error:
            fail(str(error))
        except KeyboardInterrupt:
            graded.close()
            print(
                f"accel_lab: interrupted; {done} more are graded and kept, "
                "the same command goes on from there",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
    if not isolated:
        print(
            "accel_lab: NOT ISOLATED: practice results only, no marks; "
            "see python -m accel_lab doctor",
            file=sys.stderr,
        )
    if not options.jsonl:
        print(f"{options.out}, {options.out.with_suffix('') / 'report.html'}")


def _search(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m accel_lab search",
        allow_abbrev=False,
        description="Search good values for a technique's knobs, on processes or on a cluster.",
    )
    parser.add_argument("technique")
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="KNOB[=LOW:HIGH]",
        help="a knob to search over, by default over its whole range; as often as wanted",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="a knob for all trials"
    )
    parser.add_argument("--metric", default="loss", help="what is judged (%(default)s)")
    parser.add_argument("--most", action="store_true", help="more of it is better, not less")
    parser.add_argument(
        "--strategy", choices=("random", "grid", "halving"), default="random", help="(%(default)s)"
    )
    parser.add_argument("--candidates", type=int, default=27, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=200, help="updates of the longest trials (%(default)s)"
    )
    parser.add_argument("--eta", type=int, default=3, help="halving keeps one in so many")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("trials.jsonl"),
        help="each trial as it ends; the same command goes on from there (%(default)s)",
    )
    parser.add_argument("--jsonl", action="store_true", help="print each trial as a line of JSON")
    parser.add_argument("--jobs", type=int, help="how many at once (as many as there are cores)")
    parser.add_argument(
        "--scheduler",
        default="",
        metavar="tcp://…",
        help="spread over the workers of this dask.distributed scheduler",
    )
    options = parser.parse_args(arguments)
    for name in ("jobs", "candidates", "steps"):
        if (number := getattr(options, name)) is not None and number < 1:
            fail(f"--{name} {number}: at least 1")
    if options.eta < 2:
        fail(f"--eta {options.eta}: at least 2")
    from accel_lab.workbench.knobs import KnobError, no_such

    if options.technique not in (known := catalog.techniques()):
        fail(no_such("technique", options.technique, known))
    from accel_lab import _tuning
    from accel_lab.workbench.tasks.cluster import NoCluster

    _end_on_sigterm()
    try:
        search = _tuning.asked(options)
        found = _tuning.run(search, options.out, options.jobs, options.scheduler)
        with contextlib.closing(found):
            for trial in _tuning.shown(search, found, options.jsonl):
                print(trial, flush=True)
    except (KnobError, NoCluster, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or options.out}: {error.strerror}")
    except KeyboardInterrupt:
        print(
            f"accel_lab: interrupted; {options.out} keeps what has ended, "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def _export(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m accel_lab export",
        allow_abbrev=False,
        description="The exercises for another grader.",
    )
    parser.add_argument(
        "--nbgrader",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a course folder of nbgrader’s: source/ is written",
    )
    from accel_lab.grading.nbgrader import CannotExport, export

    try:
        written = export(parser.parse_args(arguments).nbgrader, COURSE)
    except CannotExport as error:
        fail(str(error))
    print(*written, sep="\n")


def _copy(arguments: list[str]) -> None:
    parser = Parser(
        prog="python -m accel_lab copy",
        allow_abbrev=False,
        description="The chapters as your own to work on: made, or brought up to date.",
    )
    parser.add_argument("folder", type=Path, help="what you have changed in it is left alone")
    folder = parser.parse_args(arguments).folder
    from accel_lab.workbench.notebook.own_copy import bring_up_to_date

    try:
        print(f"{folder}: {bring_up_to_date(COURSE, folder)}")
    except OSError as error:
        fail(f"{folder}: {error.strerror}")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m accel_lab", description=__doc__, allow_abbrev=False)
    usage = (
        "list | run TECHNIQUE [--knob value …] | search TECHNIQUE --vary KNOB … | copy FOLDER | "
        "grade SUBMISSIONS… | export --nbgrader FOLDER | doctor"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar=usage)
    commands.add_parser("list", help="the techniques, a line each")
    commands.add_parser("doctor", help="what this machine has, and what is missing")
    runs = commands.add_parser(
        "run", help="run a technique; its knobs: run TECHNIQUE --help", add_help=False
    )
    runs.add_argument("technique")
    commands.add_parser(
        "search", help="search good values for its knobs: search --help", add_help=False
    )
    commands.add_parser(
        "grade", help="grade what learners have handed in: grade --help", add_help=False
    )
    commands.add_parser(
        "export", help="the exercises as an assignment for nbgrader: export --help", add_help=False
    )
    commands.add_parser(
        "copy", help="the chapters as your own to work on: copy --help", add_help=False
    )
    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        run(options.technique, rest)
    elif options.command in ("search", "copy", "grade", "export"):
        of = {"search": _search, "copy": _copy, "grade": _grade, "export": _export}
        of[options.command](rest)
    elif rest:
        fail(f"{options.command} takes no {rest[0]!r}")
    else:
        {"list": show_list, "doctor": doctor}[options.command]()
