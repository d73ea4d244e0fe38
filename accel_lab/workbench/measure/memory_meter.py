"""Memory, counted two ways: by what autograd keeps for backward, and by the whole process."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class ActivationMeter:
    """Counts the bytes autograd keeps between a forward pass and its backward pass.

    >>> with ActivationMeter(model, x, y) as meter:
    ...     loss_fn(model(x), y).backward()
    >>> meter.peak  # bytes: the most that was kept at once
    >>> meter.held  # bytes: what is kept now, 0 after backward

    A storage saved by two operations counts once. What exists anyway does not count: the model's
    parameters and buffers and the tensors given here (the batch). ``history`` holds (seconds since
    entry, bytes kept) at each change.

    It listens through ``saved_tensors_hooks``, of which only the innermost pair is called. Where
    other code brings a pair of its own (``torch.utils.checkpoint`` with use_reentrant=False,
    ``save_on_cpu``), what is handed to that pair counts from then on for as long as its storage
    lives: what such code drops at once is gone at once, what it keeps or computes again is counted.
    """

    def __init__(self, *exist_anyway: nn.Module | Tensor):
        self._ignored = {_address(tensor) for thing in exist_anyway for tensor in _tensors(thing)}
        self._users: dict[int, int] = {}
        self._watched: set[int] = set()  # storages whose end is waited for
        self.held = self.peak = 0
        self.history: list[tuple[float, int]] = []

    def __enter__(self) -> ActivationMeter:
        self._zero = perf_counter()
        self._stack = ExitStack()
        self._stack.enter_context(saved_tensors_hooks(self._pack, _unpack))
        self._stack.enter_context(self._nested_hooks_heard())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @contextmanager
    def _nested_hooks_heard(self) -> Generator[None]:
        """Pairs of hooks that are entered meanwhile let the meter see what they are given."""
        enter = saved_tensors_hooks.__enter__

        def heard(hooks: saved_tensors_hooks) -> None:
            pack = hooks.pack_hook

            def pack_and_tell(tensor: Tensor) -> Any:
                self._watch(tensor)
                return pack(tensor)

            hooks.pack_hook = pack_and_tell
            enter(hooks)

        saved_tensors_hooks.__enter__ = heard  # ty: ignore[invalid-assignment]
        try:
            yield
        finally:
            saved_tensors_hooks.__enter__ = enter

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        if _address(tensor) in self._ignored:
            return tensor
        # An operation that saves its own output is held by it: kept whole, neither would ever go.
        return _Kept(self, tensor.detach())

    def _watch(self, tensor: Tensor) -> None:
        """Count a storage until it is freed."""
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._ignored or address in self._watched:
            return
        self._watched.add(address)
        self._count(address, storage.nbytes(), +1)
        weakref.finalize(storage, self._freed, address, storage.nbytes())

    def _freed(self, address: int, size: int) -> None:
        self._watched.discard(address)
        self._count(address, size, -1)

    def _count(self, address: int, size: int, users: int) -> None:
        """One more (+1) or one fewer (−1) keeps this storage; the first and the last one count."""
        before = self._users.get(address, 0)
        self._users[address] = before + users
        if before == 0 or before + users == 0:
            self.held += users * size
            self.peak = max(self.peak, self.held)
            self.history.append((perf_counter() - self._zero, self.held))


class _Kept:
    """A tensor autograd keeps; when autograd lets go of it, so does the meter."""

    __slots__ = ("meter", "tensor")

    def __init__(self, meter: ActivationMeter, tensor: Tensor):
        self.meter, self.tensor = meter, tensor
        self._count(+1)

    def _count(self, users: int) -> None:
        size = self.tensor.untyped_storage().nbytes()
        self.meter._count(_address(self.tensor), size, users)

    def __del__(self) -> None:
        self._count(-1)


def _unpack(kept: Tensor | _Kept) -> Tensor:
    return kept.tensor if isinstance(kept, _Kept) else kept


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(thing: nn.Module | Tensor) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    else:
        yield from thing.parameters()
        yield from thing.buffers()


def memory_of(work: Callable[[], object], model: nn.Module, *batch: Tensor) -> dict[str, float]:
    """Run ``work`` twice and count its memory both ways, in bytes: what a Step of a run carries as
    metrics.
    """
    with ActivationMeter(model, *batch) as meter:
        work()
    with process_peak(batch[0].device) as process:
        work()
    return {"activation_bytes": float(meter.peak), "process_peak_bytes": float(process.grown)}


@dataclass
class PeakBytes:
    """What ``process_peak`` found. ``grown``: bytes the process grew by at most; ``how``: which
    counter said so.
    """

    grown: int = 0
    how: str = ""
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)


@contextmanager
def process_peak(device: torch.device | None = None) -> Generator[PeakBytes]:
    """The most memory the body took beyond what the process held at its start, as the system counts
    it.

    CUDA: torch's allocator. Linux: the kernel's high-water mark of resident memory, reset at the
    start. Elsewhere resident memory is sampled a thousand times a second, which can miss a short
    peak. Freed memory is given back to the system first: otherwise the body would reuse it and seem
    to need none.
    """
    peak = PeakBytes()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start, peak.how = torch.cuda.memory_allocated(device), "torch's CUDA allocator"
        yield peak
        peak.grown = torch.cuda.max_memory_allocated(device) - start
        return
    _give_back_freed_memory()
    if _reset_high_water_mark():
        start, peak.how = _status("VmRSS"), "high-water mark of resident memory"
        yield peak
        peak.grown = max(0, _status("VmHWM") - start)
        return
    peak.how = "resident memory, sampled"
    sampler = threading.Thread(target=_sample, args=(peak,), daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        peak._stop.set()
        sampler.join()


def _give_back_freed_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # not Linux, or a container that forbids it
        return False
    return True


def _status(name: str) -> int:
    """bytes, from a line such as ``VmRSS:   12345 kB``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024


def _sample(peak: PeakBytes) -> None:
    import psutil

    process = psutil.Process(os.getpid())
    start = process.memory_info().rss
    while not peak._stop.wait(0.001):
        peak.grown = max(peak.grown, process.memory_info().rss - start)
