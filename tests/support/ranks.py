"""Processes that are ranks of a gloo world, started once for many pieces of work, and what they search for the tests."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.engine import RankInfo, World
from fastdarts.search import Bilevel
from fastdarts.spaces import Space
from tests.support import bilevels
from tests.support.bilevels import everything, number
from tests.support.runs import free_port

SMALL = Space.uniform("small", ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"), nodes=1)
PATIENCE = 100.0  # seconds for a piece of work
Work = Callable[..., Any]


class Pool:
    """`size` processes of one thread each; pool(n, work, *args) gives work(world, *args) of each of n ranks, by rank."""

    def __init__(self, size: int, timeout: float) -> None:
        context, port = get_context("spawn"), free_port()
        pairs = [context.Pipe() for _ in range(size)]
        self._pipes = [mine for mine, _ in pairs]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, size, port, timeout), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, size: int, work: Work, *args: Any) -> list[Any]:
        for pipe in self._pipes[:size]:
            pipe.send((size, work, args))
        results = []
        for rank, pipe in enumerate(self._pipes[:size]):
            assert pipe.poll(PATIENCE), f"rank {rank} does not answer"
            result, error = pipe.recv()
            assert error is None, f"rank {rank}:\n{error}"
            results.append(result)
        return results

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def pool(size: int, timeout: float = 60.0) -> Iterator[Pool]:
    made = Pool(size, timeout)
    try:
        yield made
    finally:
        made.end()


def _serve(pipe: Connection, rank: int, size: int, port: int, timeout: float) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, timedelta(seconds=PATIENCE))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    limit = timedelta(seconds=timeout)
    worlds = {1: World()} if rank == 0 else {}
    for part in range(2, size + 1):
        group = dist.new_group(list(range(part)), timeout=limit)
        prefixed = dist.PrefixStore(f"of {part}", store)
        if rank < part:
            info = RankInfo(rank, part, rank, part)
            worlds[part] = World(info, backend="gloo", timeout=timeout, store=prefixed, group=group)
    while True:
        part, work, args = pipe.recv()
        try:
            pipe.send((work(worlds[part], *args), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def share(batch: Batch, world: World) -> Batch:
    """This rank's images of a batch, as the sampler deals them out."""
    return Batch(*(t[world.rank :: world.size] for t in batch))


def bilevel(world: World, sync: bool, **settings: Any) -> Bilevel:
    """tests.support.bilevels.make for a rank; `sync`: BatchNorm over the images of all ranks."""
    made = bilevels.make(reduce=None if world.is_single else world.average, **settings)
    if sync and not world.is_single:
        made.supernet.synchronise(world)
    return made


def steps(world: World, count: int, begin: int, sync: bool, settings: dict[str, Any]) -> tuple[dict[str, Tensor], list[float]]:
    """`count` steps on batches of eight, alpha from step `begin` on: all that they changed, and their losses."""
    made, losses = bilevel(world, sync, **settings), []
    for step in range(count):
        train, val = (share(bilevels.batch(2 * step + i, 8), world) for i in range(2))
        losses += [float(loss) for loss in made(number(step), train, val if step >= begin else None) if loss is not None]
    return everything(made), losses
