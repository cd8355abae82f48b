"""Data-parallel training over torchrun's ranks, each on an equal share of every batch.

The only file that reads torchrun's environment. The network is not wrapped: each update averages one flat tensor over the
ranks (search.bilevel). All randomness depends on image numbers or the step only, so the ranks compute what one process would
compute on the whole batch. A single process is a World of size 1, with no overhead.

Start-up may take much longer on one rank (rank 0 alone checks files): there, ranks wait for each other without limit, unless
one announces that it ends. From the first step on, a rank that does not answer within the time-out is lost, and the others
end.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from time import monotonic, sleep
from typing import Any, Literal, NamedTuple, TextIO, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from fastdarts.engine.progress import log_to

T = TypeVar("T")
Backend = Literal["auto", "nccl", "gloo"]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size in bytes
NAMED = 5  # tensors listed in a message
POLL = 0.05  # seconds between polls of the store
LEFT = "fastdarts/left"  # store key: the rank that left early
CPU = torch.device("cpu")
log = logging.getLogger("fastdarts")


class WorldError(ValueError):
    """The ranks cannot start together: no rendezvous, or different arguments."""


class RankLost(RuntimeError):
    """Another rank ended, or did not answer within the time-out."""


class RanksDisagree(RuntimeError):
    """Ranks hold different values that must be equal; the message names rank and tensors."""


class PeerError(RuntimeError):
    """Another rank failed in a collective operation and reports the error itself."""


class RankInfo(NamedTuple):
    """Rank of this process, over all nodes and on its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @staticmethod
    def of_environment() -> "RankInfo":
        """Read torchrun's variables; a single process without torchrun. Raises WorldError if only some of them are set."""
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return RankInfo()
        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise WorldError(f"WORLD_SIZE is set but not {', '.join(missing)}: start several processes with torchrun")
        try:
            return RankInfo(*(int(os.environ[name]) for name in VARIABLES[:4]))
        except ValueError as error:
            raise WorldError(f"torchrun's variables {', '.join(VARIABLES[:4])} must be integers: {error}") from error

    @property
    def prefix(self) -> str:
        """Return the log prefix of ranks other than 0."""
        return f"[rank {self.rank}] " if self.rank else ""

    @contextmanager
    def log(self, stream: TextIO | None = None) -> Generator[None]:
        """Context manager: rank 0 logs to `stream` (stdout); the others log warnings to stderr, with their rank."""
        if self.rank == 0:
            with log_to(stream or sys.stdout):
                yield
            return
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"{self.prefix}%(message)s"))
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)

    def threads(self) -> int:
        """Return torch's CPU threads for each rank of this node; torchrun's default is one."""
        if self.local_size == 1:
            return torch.get_num_threads()
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


class World:
    """Ranks of a run: `join` connects them; World() is a single process.

    Unless noted otherwise, methods are collective: all ranks call them, in the same order. They raise RankLost.
    """

    def __init__(
        self,
        info: RankInfo = RankInfo(),  # noqa: B008 - a tuple
        *,
        backend: str | None = None,
        timeout: float = 600.0,
        store: dist.Store | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """store: rendezvous store for waits without time limit; group: None for torch's default group."""
        self.info, self.backend, self.timeout = info, backend, timeout
        self.rank, self.size = info.rank, info.size
        self._store, self._group, self._barriers = store, group, 0

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the only one that writes files and logs."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.size == 1

    @staticmethod
    @contextmanager
    def join(info: RankInfo, device: str, timeout: float, backend: Backend = "auto") -> Generator["World"]:
        """Connect all ranks that torchrun started, inside the context.

        device   "auto", "cpu", "cuda" or "cuda:N": a GPU uses NCCL, unless `backend` is gloo
        timeout  seconds for the others to arrive, and later to answer
        Raises WorldError.
        """
        if info.size == 1:
            yield World(info, timeout=timeout)
            return
        chosen = _backend(info, device, backend)
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        limit = timedelta(seconds=timeout)
        try:
            store, _, _ = next(dist.rendezvous("env://", info.rank, info.size, timeout=limit))
            store = _of_this_start(store, info, limit)
            kinds = "cpu:gloo,cuda:nccl" if chosen == "nccl" else "gloo"
            dist.init_process_group(kinds, store=store, rank=info.rank, world_size=info.size, timeout=limit)
        except (RuntimeError, ValueError, OSError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WorldError(f"{info.size} ranks did not all connect to {address} within {timeout:g} seconds: {why}") from error
        world, failed = World(info, backend=chosen, timeout=timeout, store=store), True
        try:
            yield world
            failed = False
        finally:
            if failed:
                world._leave()
            if chosen == "gloo" or not failed:  # NCCL would wait for lost ranks: the process ends instead
                dist.destroy_process_group()

    def average(self, flat: Tensor) -> None:
        """Replace `flat`, contiguous, floating-point, by its mean over the ranks, bitwise equal on all of them."""
        self.sum(flat)
        flat.div_(self.size)

    def sum(self, flat: Tensor) -> None:
        """Replace `flat`, contiguous, by its sum over the ranks."""
        if self.backend is not None:
            self._call("summing over the ranks", partial(dist.all_reduce, flat, group=self._group))

    def agree(self, signal: int, due: bool) -> tuple[int, bool]:
        """Return the largest signal received by any rank (0: none), and whether `due` holds on rank 0. Called after a step.

        Does not synchronise with a GPU.
        """
        flags = torch.tensor([signal, int(due and self.is_main)])
        if self.backend is not None:
            self._call("agreeing", partial(dist.all_reduce, flags, dist.ReduceOp.MAX, group=self._group))
        signal, saves = flags.tolist()
        return signal, bool(saves)

    def wait(self) -> None:
        """Wait for all ranks."""
        self.agree(0, False)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy all tensors from rank 0, in place."""
        if self.is_single:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for t in tensors:
            kinds.setdefault(t.dtype, []).append(t.detach())
        for group in kinds.values():
            flat = torch.cat([t.reshape(-1) for t in group])
            self._call("broadcasting the initial weights", partial(dist.broadcast, flat, group_src=0, group=self._group))
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(part.view(t.shape))

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        if self.is_single:
            return [value]
        values: list[Any] = [None] * self.size
        self._call("gathering values", partial(dist.all_gather_object, values, value, group=self._group))
        return values

    def on_rank_zero(
        self, work: Callable[[], T], send: Callable[[T], Any] = lambda result: result, *, begun: bool = False
    ) -> Any:
        """Run work() on rank 0; return its result there, and `send(result)` on the others.

        begun  False: no time limit. True, after the first step: within the time-out
        Exceptions of `work` are raised on rank 0, and PeerError on the others.
        """
        if self.is_single:
            return work()
        result: Any = None
        sent: list[Any] = [None, None]  # failed, result
        error: Exception | None = None
        if self.is_main:
            try:
                result = work()
                sent = [False, send(result)]
            except Exception as raised:
                error, sent = raised, [True, None]
        if not begun:
            self._barrier()
        self._call("waiting for rank 0", partial(dist.broadcast_object_list, sent, group_src=0, group=self._group, device=CPU))
        if error is not None:
            raise error
        if sent[0]:
            raise PeerError("rank 0 could not start")
        return result if self.is_main else sent[1]

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run work() on every rank, without time limit; if one fails, all do.

        Each error is raised on its own rank, unless a lower rank has the same one; the other ranks raise PeerError.
        """
        if self.is_single:
            return work()
        result: Any = None
        error = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        self._barrier()
        errors = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if not any(errors):
            return result
        if error is not None and errors[self.rank] not in errors[: self.rank]:
            raise error
        raise PeerError("another rank could not start")

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise WorldError, on all ranks, unless all have the same facts; the message names the first difference."""
        first, *others = self.gather(dict(facts))
        for rank, theirs in enumerate(others, 1):
            for name in first.keys() | theirs.keys():
                if first.get(name) != theirs.get(name):
                    both = f"{theirs.get(name)!r} there, {first.get(name)!r} on rank 0"
                    raise WorldError(f"rank {rank} was started differently from rank 0: {name} is {both}")

    def check_equal(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raise RanksDisagree, on all ranks, unless tensors are bitwise equal. Compares checksums; synchronises the device."""
        sums = torch.stack([checksum(t) for t in tensors.values()]).tolist()
        every = self.gather(tuple(sums))
        (usual, _), *_ = Counter(every).most_common(1)
        differing = []
        for rank, sums_of in enumerate(every):
            if names := [n for n, local, common in zip(tensors, sums_of, usual, strict=True) if local != common]:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                differing.append(f"rank {rank} in {', '.join(names[:NAMED])}{more}")
        if differing:
            raise RanksDisagree(f"{when}, ranks hold different values: {'; '.join(differing)} of {len(tensors)} tensors")

    def _leave(self) -> None:
        """Announce that this rank ends early, which releases the ranks waiting in `_barrier`. Not collective."""
        if self._store is not None:
            with suppress(RuntimeError):  # the store may be gone, which the others notice too
                self._store.set(LEFT, str(self.rank))

    def _barrier(self) -> None:
        """Wait for all ranks without time limit, while the store exists and none has left.

        Unlike a collective, it handles signals meanwhile.
        """
        if self._store is None:
            return
        self._barriers += 1
        names = [f"fastdarts/{self._barriers}/{rank}" for rank in range(self.size)]
        self._call("meeting", partial(self._store.set, names[self.rank], "here"))
        logged = monotonic()
        while True:
            left = self._call("meeting", partial(self._store.check, [LEFT]))  # check first: a rank may arrive, then leave
            if self._call("meeting", partial(self._store.check, names)):
                return
            if left:
                raise self._lost("meeting", RuntimeError(f"rank {self._store.get(LEFT).decode()} has ended"))
            sleep(POLL)
            if monotonic() - logged > self.timeout:
                log.info("still waiting for other ranks to start")
                logged = monotonic()

    def _call(self, what: str, collective: Callable[[], T]) -> T:
        try:
            return collective()
        except RuntimeError as error:
            raise self._lost(what, error) from error

    def _lost(self, what: str, error: Exception) -> RankLost:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        ended = "a rank has exited, or the network connection is broken"
        return RankLost(f"rank {self.rank} of {self.size} lost the others while {what}: {ended} ({why})")


def checksum(tensor: Tensor) -> Tensor:
    """Return an int64 of one element, on the tensor's device, over bits and positions; any single changed word changes it."""
    words = tensor.detach().reshape(-1).view(WORDS[tensor.element_size()]).long()
    return (words * (2 * torch.arange(len(words), device=words.device) + 1)).sum()


def _of_this_start(store: dist.Store, info: RankInfo, limit: timedelta) -> dist.Store:
    """Return the part of torchrun's store reserved for the processes of this start.

    After a restart the store still holds keys of earlier processes, including addresses. So each rank publishes a fresh token,
    and rank 0 answers under that token with the name of the part until all ranks have arrived.
    """
    token, deadline = uuid4().hex, monotonic() + limit.total_seconds()

    def wait_for(keys: list[str], meanwhile: Callable[[], None] = lambda: None) -> None:
        while not store.check(keys):
            meanwhile()
            if monotonic() > deadline:
                raise dist.DistStoreError("some ranks did not arrive")
            sleep(POLL)

    def answer() -> None:
        for key in [f"fastdarts/token/{rank}" for rank in range(1, info.size)]:
            if store.check([key]):
                store.set(f"fastdarts/part/{store.get(key).decode()}", name)

    if info.rank:
        store.set(f"fastdarts/token/{info.rank}", token)
        wait_for([f"fastdarts/part/{token}"])
        name = store.get(f"fastdarts/part/{token}").decode()
        store.set(f"{name}/{info.rank}", "here")
    else:
        name = f"fastdarts/{token}"
        wait_for([f"{name}/{rank}" for rank in range(1, info.size)], answer)
    return dist.PrefixStore(name, store)


def _backend(info: RankInfo, device: str, asked: Backend) -> str:
    """Return NCCL if every rank has a separate GPU, else gloo. Raises WorldError for an impossible choice."""
    if device.startswith("cpu") or not torch.cuda.is_available():
        if asked == "nccl":
            raise WorldError("--dist_backend nccl: NCCL needs GPUs, this runs on a CPU")
        return "gloo"
    if asked == "gloo":
        return "gloo"
    gpus = torch.cuda.device_count()
    if device.startswith("cuda:") and info.local_size > 1:
        raise WorldError(f"--device {device}: {info.local_size} ranks would share it; omit it, or use --dist_backend gloo")
    if info.local_rank >= gpus:
        raise WorldError(f"{info.local_size} ranks on a node with {gpus} GPUs: set --nproc-per-node to the number of GPUs")
    torch.cuda.set_device(info.local_rank)
    return "nccl"
