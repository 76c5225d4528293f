"""The training loop, the same for every network: epochs, schedule, precision, logs, exact resume.

A task says what one step is; this module runs it. A run depends on its seed alone: data order and
augmentation are drawn from (seed, epoch, step), never from a generator whose state would have to survive
a kill, so that a run that was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from hz_runtime.errors import UsageError
from hz_train.ahead import Arrays, batches_ahead, workers
from hz_train.checkpoint import (
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from hz_train.progress import TrainingProgress

STATE = "last.safetensors"
DIVERGED = "Start again in another --out with a lower --lr, or with --precision float32."
# How an array with so many axes is laid out as (N, 1, ...) where channels come last.
LAYOUTS = {3: torch.channels_last, 4: torch.channels_last_3d}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    The defaults are Komandur 2023: Adam 1e-4, batch 4, 100 epochs, x0.1 at 35 and 75.

    betas are (0.5, 0.999) as in Zhu 2017: the paper does not give them.
    precision : float32, bf16 or fp16 (autocast; fp16 with loss scaling); auto, until `precision.settled`.
    picture_every : epochs between pictures of fixed scans; 0 for none.
    """

    epochs: int = 100
    batch: int = 4
    lr: float = 1e-4
    milestones: tuple[int, ...] = (35, 75)
    gamma: float = 0.1
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    picture_every: int = 5

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0 (MultiStepLR)."""
        return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)


class Task(Protocol):
    """What is trained: networks, their optimizers, and one step.

    arrays : (epoch, step) to what that step is trained on, as numpy holds it; a pure function that is called
        from other threads, ahead of the step.  step : the same arrays as tensors, as `Run.put` makes them.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def steps(self, epoch: int) -> int: ...
    def rate(self, epoch: int) -> float: ...
    def arrays(self, epoch: int, index: int, /) -> Arrays: ...
    def step(self, epoch: int, batch: Sequence[Tensor], run: Run) -> dict[str, Tensor]: ...
    def picture(self, path: Path) -> None: ...
    def evaluate(self, epoch: int) -> dict[str, float]: ...


@runtime_checkable
class EarlyStopping(Protocol):
    """A task whose learning rate, or end, depends on how training went."""

    def review(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Called before every epoch, and at the end, with the rows logged so far; True ends training.

        A resumed run's history begins with the first epoch, too.
        """
        ...


@dataclass
class Run:
    """Device, precision and gradient exchange, as a step needs them.

    `with Run.start(...) as run:` leaves the process group at the end, where it was joined at the start.
    """

    schedule: Schedule
    device: torch.device
    world: int = 1
    rank: int = 0
    scaler: torch.amp.GradScaler | None = None
    joined: bool = False  # the process group, by this run and not before it

    @classmethod
    def start(cls, schedule: Schedule, device: str = "auto") -> Run:
        """Pick the device and join the process group when torchrun started several processes."""
        if schedule.precision not in ("float32", "bf16", "fp16"):
            raise UsageError(f"precision {schedule.precision!r} is unknown.", "Choose float32, bf16 or fp16.")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        world, rank, joined = 1, 0, False
        if torch.distributed.is_torchelastic_launched():
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
                joined = True
            world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
            if device == "cuda":
                device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
                torch.cuda.set_device(device)  # NCCL sends Python objects through the current device
        where = torch.device(device)
        scaler = torch.amp.GradScaler(where.type) if schedule.precision == "fp16" else None
        return cls(schedule, where, world, rank, scaler, joined)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.joined:
            torch.distributed.destroy_process_group()

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for the forward pass."""
        if self.schedule.precision == "float32":
            return nullcontext()
        return torch.autocast(
            self.device.type, torch.bfloat16 if self.schedule.precision == "bf16" else torch.float16
        )

    def put(self, array: np.ndarray) -> Tensor:
        """(N, D, H, W) numpy to an (N, 1, D, H, W) float32 tensor on the device, in the layout chosen.

        Slices (N, D, H) become (N, 1, D, H). Other shapes, such as (N,) ages, keep theirs.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        if array.ndim in LAYOUTS:
            tensor = tensor.unsqueeze(1)
            if self.schedule.channels_last:
                tensor = tensor.contiguous(memory_format=LAYOUTS[array.ndim])
        return tensor.to(self.device, non_blocking=True)

    def lay_out(self, network: nn.Module, axes: int) -> nn.Module:
        """A network on the device, in the layout chosen; axes : of the arrays it is given, as in `put`."""
        if self.schedule.channels_last:
            # torch's overloads of Module.to leave out the one of its documentation with a layout alone.
            network.to(memory_format=LAYOUTS[axes])  # type: ignore[call-overload]
        return network.to(self.device)

    def compiled(self, network: nn.Module) -> nn.Module:
        """A network as its steps call it: by torch.compile where the schedule says so."""
        if not self.schedule.compile:
            return network
        made = torch.compile(network)
        assert isinstance(made, nn.Module), "torch.compile of a module is a module"
        return made

    def shared(self, values: dict[str, float]) -> dict[str, float]:
        """Rank 0's values, on every process."""
        if self.world == 1:
            return values
        box = [values]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward, average gradients over processes, one optimizer step."""
        optimizer.zero_grad(set_to_none=True)
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.world > 1:
            self._average(optimizer)
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def _average(self, optimizer: torch.optim.Optimizer) -> None:
        # One exchange of one flat vector: GAN steps run each network several times with others frozen,
        # which DistributedDataParallel's hooks do not follow.
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        offset = 0
        for grad in grads:
            grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
            offset += grad.numel()


def adam(networks: Sequence[nn.Module], schedule: Schedule) -> torch.optim.Adam:
    """One Adam over several networks."""
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.Adam(
        parameters, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
    )


def fit(
    task: Task,
    run: Run,
    out: Path,
    settings: dict[str, Any] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train until the schedule ends, resuming what `out` already holds.

    Raises UsageError where `out` holds more epochs than the schedule: the longer training is another one.
    settings : everything besides the schedule that decides the result (cohort, weights, ...); a folder
        whose checkpoint was made with other settings is refused with UsageError, never mixed.
    """
    out.mkdir(parents=True, exist_ok=True)
    schedule = run.schedule
    # How many processes share a batch decides the result as well; one is what states that do not say had.
    who = {"processes": run.world} if run.world > 1 else {}
    decides = {"schedule": _identity(schedule), **who, **(settings or {})}
    identity = json.loads(json.dumps(decides, default=str))
    history = _resume(task, run, out, identity)
    first = len(history)
    total = sum(task.steps(epoch) for epoch in range(first, schedule.epochs))
    logs = _Logs(out, first) if run.rank == 0 else None
    stops = isinstance(task, EarlyStopping)
    left = range(first, schedule.epochs)
    # Nothing is made ahead for an epoch that may never come.
    spans = [range(epoch, epoch + 1) for epoch in left] if stops else [left]
    with TrainingProgress(total, schedule.epochs, silent=run.rank != 0) as progress:
        for span in spans:
            if isinstance(task, EarlyStopping) and task.review(history):
                break
            steps = ((epoch, index) for epoch in span for index in range(task.steps(epoch)))
            with closing(batches_ahead(task.arrays, steps, workers(run.device.type, run.world))) as batches:
                for epoch in span:
                    row = _one_epoch(task, run, epoch, batches, progress, logs)
                    history.append(run.shared(row) if stops else row)
                    if run.rank == 0:
                        _save(task, run, out, history, identity)
                        _draw(task, schedule, out, epoch)
                    if after_epoch:
                        after_epoch(epoch)
    if isinstance(task, EarlyStopping):
        task.review(history)


def _draw(task: Task, schedule: Schedule, out: Path, epoch: int) -> None:
    """The picture of an epoch, where one is due."""
    every = schedule.picture_every
    if every and ((epoch + 1) % every == 0 or epoch + 1 == schedule.epochs):
        task.picture(out / f"epoch-{epoch + 1:03d}.png")


def _one_epoch(
    task: Task,
    run: Run,
    epoch: int,
    batches: Iterable[Arrays],
    progress: TrainingProgress,
    logs: _Logs | None,
) -> dict[str, float]:
    """Train for an epoch; returns the row of the log."""
    rate = task.rate(epoch)
    for optimizer in task.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate
    for network in task.networks.values():
        network.train()
    # Every process draws dropout of its own.
    torch.manual_seed((run.schedule.seed * 100_003 + epoch) * run.world + run.rank)
    sums: dict[str, Tensor] = {}
    count = task.steps(epoch)
    for index, arrays in enumerate(islice(batches, count)):
        batch = [run.put(array) for array in arrays]
        for name, value in task.step(epoch, batch, run).items():
            # Sums stay on the device: reading a number back every step would stall a GPU.
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        progress.step(epoch, index, count, partial(_means, sums, index + 1))
    means = _means(sums, count)
    for name, mean in means.items():
        if not np.isfinite(mean):
            raise UsageError(f"{name} became {mean} in epoch {epoch + 1}.", DIVERGED)
    for name, network in task.networks.items():  # after the last step, whose loss may have been finite still
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            raise UsageError(f"weights of {name} became non-finite in epoch {epoch + 1}.", DIVERGED)
    progress.epoch(epoch, means)
    row = {"lr": rate, **means}
    if logs:
        row |= task.evaluate(epoch)
        logs.add(epoch + 1, row)
    return row


def _means(sums: Mapping[str, Tensor], steps: int) -> dict[str, float]:
    return {name: float(value) / steps for name, value in sums.items()}


def _identity(schedule: Schedule) -> dict[str, Any]:
    """The part of a schedule that decides the result; pictures and the final epoch do not."""
    return {k: v for k, v in asdict(schedule).items() if k not in ("picture_every", "epochs", "compile")}


def _save(task: Task, run: Run, out: Path, history: list[dict[str, float]], identity: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, network in task.networks.items():
        tensors.update(with_prefix(f"network.{name}", network.state_dict()))
    for name, optimizer in task.optimizers.items():
        tensors.update(with_prefix(f"optimizer.{name}", optimizer_tensors(optimizer)))
    scale = run.scaler.state_dict() if run.scaler else None
    meta = {
        "kind": "training-state",
        "epochs_done": len(history),
        "history": history,
        "settings": identity,
        "scaler": scale,
    }
    # Two slots in turn: a kill between the two files of one pair leaves the other pair whole.
    save_checkpoint(out / f"{len(history) % 2}-{STATE}", tensors, meta)


def _resume(task: Task, run: Run, out: Path, identity: dict[str, Any]) -> list[dict[str, float]]:
    """Load the newest whole state of `out`; returns the log's row of each epoch done."""
    found: tuple[int, dict[str, Tensor], dict[str, Any]] | None = None
    for slot in (0, 1):
        path = out / f"{slot}-{STATE}"
        if not path.exists():
            continue
        try:
            tensors, meta = load_checkpoint(path)
        except UsageError:
            continue  # torn by a kill; the other slot holds the epoch before
        if found is None or meta["epochs_done"] > found[0]:
            found = (int(meta["epochs_done"]), tensors, meta)
    if found is None:
        return []
    done, tensors, meta = found
    if meta["settings"] != identity:
        names = identity.keys() | meta["settings"].keys()
        changed = sorted(k for k in names if meta["settings"].get(k) != identity.get(k))
        raise UsageError(
            f"{out.name} holds a run with other settings ({', '.join(changed)}).",
            "Give another --out, or delete that folder to start afresh.",
        )
    if done > run.schedule.epochs:
        raise UsageError(
            f"{out.name} holds {done} epochs, more than the {run.schedule.epochs} asked for.",
            f"Ask for {done} or more, give another --out, or delete that folder to start afresh.",
        )
    for name, network in task.networks.items():
        network.load_state_dict(without_prefix(f"network.{name}", tensors))
    for name, optimizer in task.optimizers.items():
        load_optimizer(optimizer, without_prefix(f"optimizer.{name}", tensors))
    if run.scaler and meta["scaler"]:
        run.scaler.load_state_dict(meta["scaler"])
    # A state written before histories were kept has none; tasks with early stopping are younger.
    return list(meta.get("history") or [{} for _ in range(done)])


class _Logs:
    """log.csv, and TensorBoard event files where it is installed. A resumed run keeps its earlier rows."""

    def __init__(self, out: Path, first: int) -> None:
        self.path = out / "log.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with open(self.path, newline="") as stream:
                self.rows = [row for row in csv.DictReader(stream) if int(row["epoch"]) <= first]
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board: Any = SummaryWriter(out / "tensorboard", purge_step=first + 1)
        except ImportError:
            self.board = None

    def add(self, epoch: int, values: dict[str, float]) -> None:
        self.rows.append({"epoch": epoch, **values})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with open(self.path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
