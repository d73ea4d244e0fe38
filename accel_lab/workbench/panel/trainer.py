"""Training in the background of a kernel: one thread, one run at a time, in this panel and in all
of them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, perf_counter

import torch

from accel_lab.workbench.device import threads
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.interrupt import ends_when
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.measure.quiet import stop_before_measuring
from accel_lab.workbench.step import Step

Run = Callable[[Knobs], Iterator[Step]]

SECONDS_A_WINDOW = 0.2
ENOUGH_TO_SEE = 4  # windows
MOST_SECONDS = 120.0  # a run that nobody stops ends by itself
SETTLED = 0.3  # seconds without another wish, after which a knob stands where it was meant to
SILENT = 3.0  # seconds without a window that are worth a word


def observe(
    run: Run,
    record: Record,
    seconds: float,
    interrupted: threading.Event | None = None,
    moved: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Train for about ``seconds`` and return the record. An interrupt ends the run, too.

    On a slow machine it takes up to four times as long, for enough windows to draw a curve through.
    ``moved`` is called after each window. What the run raises is passed on; the record holds what
    was before.
    """
    for now in windows(run, record, interrupted):
        moved(record)
        if now >= seconds and (len(record.seconds) >= ENOUGH_TO_SEE or now >= 4 * seconds):
            break
    return record


def windows(
    run: Run, record: Record, interrupted: threading.Event | None = None
) -> Iterator[float]:
    """Train and keep the record; yields the seconds since the first step began after each window,
    the first one being that step.

    One core is left to the browser: threads that share the work wait for the one that drawing holds
    up, all of them. Ends after MOST_SECONDS, or after the step during which ``interrupted`` was
    set, or with Interrupted where the run waits. Whatever ends it, the run is closed.
    """
    steps = run(record.knobs)
    zero = perf_counter()
    due = 0.0
    try:
        with threads(max(1, torch.get_num_threads() - 1)), ends_when(interrupted):
            for step in steps:
                if not record.samples:  # what the run had to prepare is not on the curve
                    zero = perf_counter() - step.seconds
                record.add(step)
                now = perf_counter() - zero
                if now >= due:
                    record.close_window(now)
                    yield now
                    due = perf_counter() - zero + SECONDS_A_WINDOW
                if now >= MOST_SECONDS or (interrupted is not None and interrupted.is_set()):
                    break
    finally:
        record.close_window(perf_counter() - zero)
        steps.close()


@dataclass(frozen=True)
class Watcher:
    """Who is told of the training, from the training thread.

    label: what to call a run with these knobs · before: what is to be run first · began: a run
    begins · moved: it has another window · silent: nothing was heard for so many seconds (from a
    thread of its own) · ended: training has ended, what it raised, and whether nobody had asked it
    to end
    """

    label: Callable[[Knobs], str]
    before: Callable[[Knobs, threading.Event], None]
    began: Callable[[Record], None]
    moved: Callable[[Record], None]
    silent: Callable[[float], None]
    ended: Callable[[Exception | None, bool], None]


class Trainer:
    """Runs ``run(knobs)`` in a daemon thread and tells a watcher.

    ``train`` while training is under way switches to the new knobs, once they have settled; there
    is never a second thread at work in a process, because two that train would measure each other:
    whoever starts last stops the other.
    """

    _at_work: Trainer | None = None
    _choosing = threading.Lock()

    def __init__(self, run: Run, watcher: Watcher):
        self._run, self._watcher = run, watcher
        self._lock = threading.Lock()
        # What to train next, and not before when: set by the kernel's main thread, taken by the
        # training thread.
        self._wanted: Knobs | None = None
        self._due = 0.0
        # Leave the run at hand: something else is wanted, or nothing any more.
        self._interrupted = threading.Event()
        self._thread: threading.Thread | None = None
        self._open = False  # the thread still looks at _wanted
        self._heard = 0.0

    @classmethod
    def stop_whoever_trains(cls) -> None:
        """Stop the trainer at work in this process, if any, and wait until its run is closed.

        A run that measures is left alone by its own measurement.
        """
        other = cls._at_work
        if other is not None and other._thread is not threading.current_thread():
            other.stop()
            other.wait()

    @property
    def training(self) -> bool:
        return self._open

    def train(self, knobs: Knobs) -> None:
        with self._lock:
            self._wanted = knobs
            self._due = monotonic() + (SETTLED if self._open else 0.0)
            self._interrupted.set()
            if self._open:
                return
            self._open = True
            before = [self._thread]
            self._thread = threading.Thread(target=self._work, daemon=True, name="training")
        with Trainer._choosing:
            other, Trainer._at_work = Trainer._at_work, self
        if other is not None and other is not self:
            other.stop()
            before.append(other._thread)
        self._wait_for = [thread for thread in before if thread is not None]
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._wanted = None
            self._interrupted.set()

    def wait(self) -> None:
        """Until training has ended. An interrupt meanwhile stops it, and is passed on."""
        try:
            while (thread := self._thread) is not None and thread.is_alive():
                thread.join(0.1)
        except KeyboardInterrupt:
            self.stop()
            raise

    def _work(self) -> None:
        for thread in self._wait_for:
            thread.join()
        over = threading.Event()
        listening = threading.Thread(target=self._listen, args=[over], daemon=True)
        listening.start()
        error: Exception | None = None
        by_itself = False
        while (knobs := self._next()) is not None:
            error = None
            try:
                self._one_run(knobs)
            except Exception as caught:  # shown where the reader looks; the kernel lives on
                if not self._interrupted.is_set():
                    error = caught
            by_itself = not self._interrupted.is_set()
        over.set()
        listening.join()
        self._watcher.ended(error, by_itself)

    def _next(self) -> Knobs | None:
        while True:
            with self._lock:
                settling = self._due - monotonic()
                if self._wanted is None or settling <= 0:
                    knobs, self._wanted = self._wanted, None
                    self._interrupted.clear()
                    self._open = knobs is not None
                    self.heard()
                    return knobs
            time.sleep(min(settling, 0.05))  # a Stop is heard meanwhile

    def _one_run(self, knobs: Knobs) -> None:
        self._watcher.before(knobs, self._interrupted)
        if self._interrupted.is_set():
            return
        record = Record(knobs, self._watcher.label(knobs))
        self._watcher.began(record)
        for _ in windows(self._run, record, self._interrupted):
            self.heard()
            self._watcher.moved(record)

    def heard(self) -> None:
        """Something goes on."""
        self._heard = monotonic()

    def _listen(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            if (silent := monotonic() - self._heard) > SILENT:
                self._watcher.silent(silent)


stop_before_measuring(Trainer.stop_whoever_trains)
