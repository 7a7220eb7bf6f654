"""Record calls in a CUDA graph that replays as fast as it can, leaving CUDA as it was when a call
cannot be recorded."""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    import torch

# cudaGraphNodeTypeKernel
_KERNEL_NODE = 0
# the first compute capability with programmatic dependent launch
DEPENDENT_LAUNCH = (9, 0)


@dataclass(frozen=True)
class Recording:
    """A graph that is ready to replay, and the kernels of its calls (None where they were not
    counted)."""

    graph: torch.cuda.CUDAGraph
    kernels: int | None

    def replay(self) -> None:
        """Queue one replay."""
        self.graph.replay()


def record(
    fn: Callable[[], object],
    *,
    device: str = "cuda",
    warmup: int = 2,
    times: int = 1,
    fast_end: bool = True,
) -> Recording:
    """Call `fn()` `warmup` times, then record `times` calls in one graph.

    With `fast_end`, and where the GPU can, the graph ends in an empty kernel in dependent
    launch, which lets all others follow each other faster: see `archsearch.dependent_launch`.
    Raises whatever `fn` raises; from its second call on that includes a RuntimeError where it
    makes the host wait for the device, which no graph can hold.
    """
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    end = _end_kernel(index) if fast_end else None
    stream = _side_stream(index)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # the first call may wait: kernels are compiled and tuned there
        fn()
        with no_host_wait():
            for _ in range(warmup - 1):
                fn()
        if end is not None:
            end()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.stream(stream):
        _capture(graph, [fn] * times + ([end] if end else []), index)
    kernels = _count_kernels(graph.raw_cuda_graph())
    graph.instantiate()
    return Recording(graph, kernels and kernels - (end is not None))


@contextlib.contextmanager
def no_host_wait() -> Iterator[None]:
    """Whatever waits for the device within raises RuntimeError."""
    import torch

    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode("error")
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    import torch

    with warnings.catch_warnings():
        # "a prototype feature", says torch each time
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _capture(
    graph: torch.cuda.CUDAGraph, calls: Sequence[Callable[[], object]], device_index: int
) -> None:
    import torch

    pool: Any = torch.cuda.graph_pool_handle()
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        for call in calls:
            call()
    except BaseException:
        with contextlib.suppress(RuntimeError):
            _end_capture(graph, pool, device_index)
        raise
    _end_capture(graph, pool, device_index)


def _end_capture(graph: torch.cuda.CUDAGraph, pool: Any, device_index: int) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        _abandon(graph, pool, device_index)
        raise


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any, device_index: int) -> None:
    """Undo what a capture that broke leaves behind."""
    import torch

    # the allocator would go on as if the capture were under way, and refuse to free anything
    for give_back in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
        with contextlib.suppress(RuntimeError):
            give_back(device_index, pool)
    # and so would the global generator, and refuse to draw
    with contextlib.suppress(RuntimeError):
        generator = torch.cuda.default_generators[device_index]
        generator.graphsafe_set_state(generator.clone_state())
    _broken.append(graph)


# torch may still ask these which allocations were theirs: they must outlive their capture
_broken: list[Any] = []


@lru_cache(maxsize=8)
def _end_kernel(device_index: int) -> Callable[[], object] | None:
    """The launch that ends a graph, where the GPU and the software have it."""
    import torch

    if torch.cuda.get_device_capability(device_index) < DEPENDENT_LAUNCH:
        return None
    if torch.version.cuda is None or find_spec("triton") is None:
        return None
    launches = import_module("archsearch.dependent_launch")
    end: Callable[[], object] = launches.end_kernel(device_index)
    return end


@lru_cache(maxsize=8)
def _side_stream(device_index: int) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace per stream."""
    import torch

    return torch.cuda.Stream(device_index)


def _count_kernels(graph: int) -> int | None:
    """Kernel nodes of a cudaGraph_t; None where the CUDA runtime does not tell."""
    runtime = _runtime()
    if runtime is None:
        return None
    count = ctypes.c_size_t()
    handle = ctypes.c_void_p(graph)
    if runtime.cudaGraphGetNodes(handle, None, ctypes.byref(count)):
        return None
    nodes = (ctypes.c_void_p * count.value)()
    if runtime.cudaGraphGetNodes(handle, nodes, ctypes.byref(count)):
        return None
    kind, kernels = ctypes.c_int(), 0
    for node in nodes:
        if runtime.cudaGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)):
            return None
        kernels += kind.value == _KERNEL_NODE
    return kernels


@lru_cache(maxsize=1)
def _runtime() -> ctypes.CDLL | None:
    """The CUDA runtime that torch has loaded."""
    import torch

    major = str(torch.version.cuda).split(".")[0]
    for name in (f"libcudart.so.{major}", "libcudart.so"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
