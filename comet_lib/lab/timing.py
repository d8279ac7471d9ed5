"""A clock and a memory gauge that are fair to what they compare."""

from __future__ import annotations

import contextlib
import math
import platform
import re
import resource
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comet_lib.processes import give_back_memory


class Memory:
    """The most memory in use since :meth:`start`, in megabytes (10^6 bytes).

    On a GPU, what torch allocated there; else this process's resident memory, whose peak Linux can
    reset. Elsewhere the peak is that of the whole process.
    """

    def start(self) -> None:
        give_back_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                return int(found[1]) * 1024 / 1e6
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if platform.system() == "Darwin" else 1024) / 1e6


class _Alive(TorchDispatchMode):
    """Bytes of the live tensors that were created inside, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # storage -> bytes; 0 where it existed before
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self.sizes.setdefault(storage._cdata, 0)
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
        self.most = max(self.most, self.now)
        return result

    def _freed(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage, 0)

    @staticmethod
    def _storages(tree: Any) -> list[Any]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def allocated(run: Callable[[], object]) -> float:
    """The most megabytes of tensors that one call creates and that live at the same time.

    Exact to the byte, where resident memory is too coarse. Memory that an operator allocates and
    frees within itself is not seen.
    """
    with _Alive() as alive:
        run()
    return alive.most / 1e6


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes, the GPU's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(
    runs: Mapping[Any, Callable[[], object]],
    repeats: int,
    patience: float = math.inf,
    block: int = 1,
) -> dict[Any, dict[str, float]]:
    """Each run's median ``seconds`` over ``calls``, taking turns after one warm-up each.

    A turn is ``block`` calls. Where it is more than one, an untimed call comes first: the previous
    run's threads, which wait a while for work and keep their core busy, would slow it down.

    ``peak_mb`` and ``extra_mb`` (the peak minus what was in use before) are the warm-up's. A run
    that would take more than ``patience`` seconds gets fewer calls; one whose first call already
    does gets none, and that call is its figure.
    """
    memory, found = Memory(), {}
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        memory.start()
        before = memory.peak()
        first = seconds(run)
        peak = memory.peak()
        calls = repeats if repeats * first <= patience else int(patience // first)
        times[name] = [] if calls else [first]
        found[name] = {"peak_mb": peak, "extra_mb": peak - before, "calls": calls}
    for turn in range(0, repeats, block):
        for name, run in runs.items():
            left = int(found[name]["calls"]) - turn
            if block > 1 and left >= block:
                run()
            times[name] += [seconds(run) for _ in range(min(block, left))]
    return {
        name: {"seconds": statistics.median(times[name]), **row, "calls": max(1, row["calls"])}
        for name, row in found.items()
    }


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or "CPU",
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
