"""What a TensorRT engine works in on the GPU: buffers, streams, contexts, CUDA graphs.

Two slots, each with its own stream, pinned host memory and GPU memory, take the pieces of a batch in turn:
while one computes, the other copies. The computations themselves follow one another, so that all contexts
can share one scratch memory. There is a context for every batch size, because resizing one costs time and
would spoil its graphs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hz_runtime.backends.base import EngineFailure, OutOfMemory
from hz_runtime.backends.cuda_driver import Cuda, Pinned
from hz_runtime.bundle.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SLOTS = 2
_FLOAT = 4  # bytes
_NO_MEMORY = re.compile(r"out ?of ?memory|could not be allocated|failed_allocation", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    """A deserialised engine and what is needed to use it.

    trt : its module.  engine : the ICudaEngine.  log : errors that TensorRT has logged; the last one says why
    a call failed.  source, outputs : its tensors, first axis free.  least : smallest batch it takes.
    """

    trt: Any
    engine: Any
    log: list[str]
    source: TensorSpec
    outputs: tuple[TensorSpec, ...]
    least: int

    def failure(self, what: str) -> EngineFailure:
        """See `failure`."""
        return failure(self.log, what)


def failure(log: list[str], what: str) -> EngineFailure:
    """The error for a TensorRT call that failed, with what TensorRT said; OutOfMemory where it was that."""
    said = log[-1] if log else "it gives no reason"
    log.clear()
    if _NO_MEMORY.search(said):
        return OutOfMemory(f"The GPU is out of memory ({what}: {said}).", "Use a smaller --batch.")
    return EngineFailure(f"TensorRT cannot {what}: {said}", "Use another backend (--backend openvino).")


@dataclass(frozen=True, eq=False)
class Slot:
    """Buffers for one piece of a batch, and the stream that moves and computes it.

    host, device : of the input, `most` volumes each.  results : the same of every output, by name.
    """

    index: int
    stream: Any
    computed: Any
    host: Pinned
    device: int
    results: dict[str, tuple[Pinned, int]]

    def bind(self, context: Any, source: str) -> bool:
        """Tell a context where its tensors lie."""
        places = {source: self.device, **{name: device for name, (_, device) in self.results.items()}}
        return all(context.set_tensor_address(name, place) for name, place in places.items())


@dataclass(eq=False)
class Context:
    """An execution context for one batch size. With graphs, also of one slot: a graph holds addresses."""

    trt: Any
    config: Any
    runs: int = 0
    graph: Any = None


def pieces(count: int, tuned: int, limit: int) -> tuple[int, ...]:
    """Sizes in which `count` volumes are run: at most `limit` each, as equal as can be; two halves where each
    still has the `tuned` size, so that one can be copied while the other is computed."""
    size = min(count, limit)
    if count >= 2 * tuned:
        size = min(size, -(-count // 2))
    number = -(-count // size)
    return tuple(count // number + (k < count % number) for k in range(number))


@dataclass(eq=False)
class Workspace:
    """Room for pieces of up to `most` volumes.

    cuda_graphs : replay recorded CUDA graphs from a batch size's second run on.  notes : where that
    fails, that it does.
    Raises OutOfMemory where the GPU has no such room; what was taken is given back then.
    """

    loaded: Loaded
    cuda: Cuda
    most: int
    cuda_graphs: bool
    notes: list[str]
    _slots: list[Slot] = field(default_factory=list)
    _contexts: dict[tuple[int, int], Context] = field(default_factory=dict)
    _scratch: tuple[int, int] = (0, 0)  # address, bytes
    _taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self._slots = [self._slot(index) for index in range(SLOTS)]
            self._context(self._slots[0], self.most)
        except BaseException:
            self.close()
            raise

    @property
    def _own_graphs(self) -> bool:
        # TensorRT for RTX swaps kernels as it learns the shapes; it records its own graphs in time.
        return self.cuda_graphs and not hasattr(self.loaded.trt, "CudaGraphStrategy")

    def run(self, batch: NDArray[np.float32], sizes: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Every output, by name, of a batch in pieces of these sizes.

        batch : (N, ...) float32, C-contiguous; sizes : sum to N, each at most `most`.
        """
        import numpy as np

        found = {spec.name: np.empty((len(batch), *_rest(spec)), np.float32) for spec in self.loaded.outputs}
        flying: list[tuple[Slot, int, int]] = []
        computed, start = None, 0
        try:
            for number, size in enumerate(sizes):
                slot = self._slots[number % SLOTS]
                if len(flying) == SLOTS:
                    self._collect(*flying.pop(0), found)
                self._start(slot, batch[start : start + size], computed)
                flying.append((slot, start, size))
                computed, start = slot.computed, start + size
            while flying:
                self._collect(*flying.pop(0), found)
        except BaseException:
            self._settle()  # copies still under way must not meet the next run's data
            raise
        return found

    def resident(self, batch: NDArray[np.float32]) -> Callable[[], None]:
        """A call that computes `batch`, which stays on the GPU, and waits; no data moves. For benchmarks."""
        slot, size = self._slots[0], len(batch)
        slot.host.array[:size] = batch
        self.cuda.upload(slot.device, slot.host.address, batch.nbytes, slot.stream)

        def call() -> None:
            self._compute(slot, size)
            self.cuda.finish(slot.stream)

        return call

    def close(self) -> None:
        """Give all of it back; twice is fine."""
        self._settle()
        self._contexts.clear()  # before the memory that they work in
        for address in self._taken:
            with suppress(EngineFailure):
                self.cuda.free(address)
        self._slots, self._taken, self._scratch = [], [], (0, 0)

    def _settle(self) -> None:
        for slot in self._slots:
            with suppress(EngineFailure):
                self.cuda.finish(slot.stream)

    def _slot(self, index: int) -> Slot:
        source = self.loaded.source
        return Slot(
            index,
            self.cuda.stream(),
            self.cuda.event(),
            self._pinned(source),
            self._memory(_FLOAT * self.most * _values(source)),
            {
                spec.name: (self._pinned(spec), self._memory(_FLOAT * self.most * _values(spec)))
                for spec in self.loaded.outputs
            },
        )

    def _pinned(self, spec: TensorSpec) -> Pinned:
        made = self.cuda.pinned((self.most, *_rest(spec)))
        self._taken.append(made.address)
        return made

    def _memory(self, size: int) -> int:
        address = self.cuda.memory(size)
        self._taken.append(address)
        return address

    def _start(self, slot: Slot, piece: NDArray[np.float32], after: Any) -> None:
        """Put one piece on its way: there, through the network once `after` is done, and back."""
        size = max(len(piece), self.loaded.least)
        slot.host.array[: len(piece)] = piece
        slot.host.array[len(piece) : size] = 0  # fewer than the engine takes: filled up
        values = _values(self.loaded.source)
        self.cuda.upload(slot.device, slot.host.address, _FLOAT * size * values, slot.stream)
        if after is not None:
            self.cuda.wait(slot.stream, after)
        self._compute(slot, size)
        self.cuda.record(slot.computed, slot.stream)
        for spec in self.loaded.outputs:
            host, device = slot.results[spec.name]
            self.cuda.download(host.address, device, _FLOAT * len(piece) * _values(spec), slot.stream)

    def _collect(self, slot: Slot, start: int, size: int, found: dict[str, NDArray[np.float32]]) -> None:
        self.cuda.finish(slot.stream)
        for name, (host, _) in slot.results.items():
            found[name][start : start + size] = host.array[:size]

    def _compute(self, slot: Slot, size: int) -> None:
        context = self._context(slot, size)
        if not slot.bind(context.trt, self.loaded.source.name):
            raise self.loaded.failure("place its tensors")
        context.runs += 1
        # TensorRT does work of its own in the first run with a shape; a graph of that would repeat it.
        if self._own_graphs and context.runs > 1 and self._captured(slot, context):
            self.cuda.launch(context.graph, slot.stream)
            return
        self._enqueue(slot, context)

    def _enqueue(self, slot: Slot, context: Context) -> None:
        self.loaded.log.clear()  # what was said of something else
        if not context.trt.execute_async_v3(int(slot.stream)):
            raise self.loaded.failure("run the engine")

    def _captured(self, slot: Slot, context: Context) -> bool:
        """Whether there is a graph to launch; where it cannot be recorded, no other is tried."""
        if context.graph is None:
            try:
                context.graph = self.cuda.capture(slot.stream, lambda: self._enqueue(slot, context))
            except EngineFailure as error:
                self.cuda_graphs = False
                self.notes.append(f"CUDA graphs are off: {error.message}")
        return context.graph is not None

    def _context(self, slot: Slot, size: int) -> Context:
        key = (size, slot.index if self._own_graphs else 0)
        if key not in self._contexts:
            made = self._new_context(size)
            self._give_scratch(made, size)
            self._contexts[key] = made
        return self._contexts[key]

    def _new_context(self, size: int) -> Context:
        trt, engine, source = self.loaded.trt, self.loaded.engine, self.loaded.source
        self.loaded.log.clear()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config: Any = strategy
        if self.cuda_graphs and not self._own_graphs:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        made = engine.create_execution_context(config)
        if made is None:
            raise self.loaded.failure("set up the engine")
        if not made.set_input_shape(source.name, (size, *_rest(source))):
            raise self.loaded.failure(f"take a batch of {size}")
        for spec in self.loaded.outputs:
            if tuple(made.get_tensor_shape(spec.name)) != (size, *_rest(spec)):
                raise self.loaded.failure(f"give {spec.name} for a batch of {size}")
        return Context(made, config)

    def _give_scratch(self, context: Context, size: int) -> None:
        """Let a context work in the shared scratch memory, which grows where it must."""
        needed = int(context.trt.update_device_memory_size_for_shapes())
        if needed == 0:  # it computes in its inputs and outputs alone; or could not tell
            if int(self.loaded.engine.device_memory_size_v2) > 0:
                raise self.loaded.failure(f"say what memory a batch of {size} takes")
            return
        if needed > self._scratch[1]:
            self._settle()
            self._contexts.clear()  # they, and their graphs, know the old address
            if self._scratch[0]:
                self._taken.remove(self._scratch[0])
                self.cuda.free(self._scratch[0])
                self._scratch = (0, 0)
            self._scratch = (self._memory(needed), needed)
        context.trt.set_device_memory(*self._scratch)


def _rest(spec: TensorSpec) -> tuple[int, ...]:
    """A tensor's axes but the batch."""
    return tuple(int(length) for length in spec.shape[1:])


def _values(spec: TensorSpec) -> int:
    """Numbers in one item of a batch."""
    count = 1
    for length in _rest(spec):
        count *= length
    return count
