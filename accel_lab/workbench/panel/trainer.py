"""Training in the background of a kernel: one thread, one run at a time, in this panel and in all
of them together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import perf_counter

import torch

from accel_lab.workbench.device import threads
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import Knobs
from accel_lab.workbench.measure.quiet import stop_before_measuring
from accel_lab.workbench.step import Step

Run = Callable[[Knobs], Iterator[Step]]

SECONDS_A_WINDOW = 0.2


ENOUGH_TO_SEE = 4


def observe(run: Run, knobs: Knobs, label: str, seconds: float) -> Record:
    """Train in the foreground for about ``seconds`` and return the record. An interrupt ends the
    run, too.

    On a slow machine it takes up to four times as long, for enough windows to draw a curve through.
    """
    record = Record(knobs, label)
    for now in windows(run, record):
        if now >= seconds and (len(record.seconds) >= ENOUGH_TO_SEE or now >= 4 * seconds):
            break
    return record


def windows(
    run: Run, record: Record, interrupted: threading.Event | None = None
) -> Iterator[float]:
    """Train and keep the record; yields the seconds since the first step began after each window,
    the first one being that step.

    One core is left to the browser: threads that share the work wait for the one that drawing holds
    up, all of them. Ends after the step during which ``interrupted`` was set. Whatever ends it, the
    run is closed.
    """
    steps = run(record.knobs)
    zero = perf_counter()
    due = 0.0
    try:
        with threads(max(1, torch.get_num_threads() - 1)):
            for step in steps:
                if not record.samples:  # what the run had to prepare is not on the curve
                    zero = perf_counter() - step.seconds
                record.add(step)
                now = perf_counter() - zero
                if now >= due:
                    record.close_window(now)
                    yield now
                    due = perf_counter() - zero + SECONDS_A_WINDOW
                if interrupted is not None and interrupted.is_set():
                    break
    finally:
        record.close_window(perf_counter() - zero)
        steps.close()


class Trainer:
    """Runs ``run(knobs)`` in a daemon thread and calls back from that thread.

    ``began(record)`` at the start of each run, ``moved(record)`` after each window,
    ``ended(error)`` when training ends, with what ended it or None. ``train`` while training is
    under way switches to the new knobs; there is never a second thread at work in a process,
    because two that train would measure each other: whoever starts last stops the other.
    """

    _at_work: Trainer | None = None
    _choosing = threading.Lock()

    def __init__(
        self,
        run: Run,
        *,
        label: Callable[[Knobs], str],
        began: Callable[[Record], None],
        moved: Callable[[Record], None],
        ended: Callable[[Exception | None], None],
    ):
        self._run, self._label = run, label
        self._began, self._moved, self._ended = began, moved, ended
        self._lock = threading.Lock()
        # What to train next: set by the kernel's main thread, taken by the training thread.
        self._wanted: Knobs | None = None
        # Leave the run at hand: something else is wanted, or nothing any more.
        self._interrupted = threading.Event()
        self._thread: threading.Thread | None = None
        self._open = False  # the thread still looks at _wanted

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
        error: Exception | None = None
        while (knobs := self._next()) is not None:
            try:
                self._one_run(knobs)
            except Exception as caught:  # shown where the reader looks; the kernel lives on
                error = caught
                self.stop()
        self._ended(error)

    def _next(self) -> Knobs | None:
        with self._lock:
            knobs, self._wanted = self._wanted, None
            self._interrupted.clear()
            self._open = knobs is not None
            return knobs

    def _one_run(self, knobs: Knobs) -> None:
        record = Record(knobs, self._label(knobs))
        self._began(record)
        for _ in windows(self._run, record, self._interrupted):
            self._moved(record)


stop_before_measuring(Trainer.stop_whoever_trains)
