"""Work items dealt out to the processes of one job. Floor 1.

Every process (rank) runs the same program on the same network. Where independent work items come up, each rank does its
share, the results are exchanged, and all go on with the complete list. So every decision that follows is made from the
same numbers everywhere, also where an item was cut off by a clock.

What is exchanged is small: numbers, multipliers, certificates. It goes over gloo whatever computes, because gloo
notices a closed connection at once; NCCL would wait.
"""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from lipcert.errors import InvalidInput, LipcertError, RankLost

T = TypeVar("T")
R = TypeVar("R")


def alike(item: object) -> float:
    """Every item costs the same."""
    return 1.0


class Map(Protocol):
    """Applies a function to independent items and returns the results in the items' order."""

    def __call__(
        self, function: Callable[[T], R], items: Sequence[T], /, *, about: str = "", cost: Callable[[T], float] = alike
    ) -> list[R]:
        """Apply ``function`` to every item.

        Args:
            function: Must depend on the item and on what all ranks share. Its results are pickled, it is not.
            items: Equal on all ranks, as far as the function reads them.
            about: What all ranks must agree on, such as the digest of the network.
            cost: What an item costs, up to a factor; affects who does it, never the result.
        """
        ...


def in_process(
    function: Callable[[T], R], items: Sequence[T], /, *, about: str = "", cost: Callable[[T], float] = alike
) -> list[R]:
    """Do everything here, one item after the other.

    Example:
        >>> in_process(abs, [1, -2])
        [1, 2]
    """
    return [function(item) for item in items]


def deal(costs: Sequence[float], size: int) -> list[int]:
    """The rank that does each item: the longest first, each to the rank with the least to do so far.

    References:
        | Bounds on multiprocessing timing anomalies (Graham, 1969): at most 4/3 of the shortest time

    Example:
        >>> deal([1.0, 1.0, 1.0], 2), deal([1.0, 2.0, 3.0], 2)
        ([0, 1, 0], [1, 1, 0])
    """
    loads, owners = [(0.0, 0)] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = min(range(size), key=loads.__getitem__)
        owners[index] = rank
        loads[rank] = (loads[rank][0] + costs[index], loads[rank][1] + 1)
    return owners


@dataclass(frozen=True)
class Failure:
    """An error of one rank on its way to the others.

    Attributes:
        index: The item it is about.
        rank: Where it was raised.
        error: The error, or one that says the same where it cannot be pickled.
        lines: Its traceback.
    """

    index: int
    rank: int
    error: Exception
    lines: str

    @classmethod
    def of(cls, error: Exception, rank: int, index: int = 0) -> Failure:
        """Make it fit to be sent."""
        lines = "".join(traceback.format_exception(error))
        try:
            portable = pickle.loads(pickle.dumps(error))
        except Exception:
            portable = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(index, rank, portable, lines)

    def said(self) -> Exception:
        """The same error with the rank in its message, or in a note where the message is not ours."""
        error = copy.copy(self.error)
        if isinstance(error, LipcertError):
            error.args = (f"{self.error} (On rank {self.rank}.)", *self.error.args[1:])
        else:
            error.add_note(f"On rank {self.rank}:\n{self.lines}")
        return error


class Line:
    """What the ranks say to each other: everyone speaks at once and hears what all have said.

    Every exchange is of a stage: a map begins or ends with one, and a block run `together` is left with one. A rank
    that leaves a block by an error is heard by the others wherever they are.

    Attributes:
        busy: Whether this rank is at work on an item. Maps within an item are done in process.
    """

    def __init__(self, gather: Callable[[bytes], list[bytes]], rank: int) -> None:
        """Begin to speak.

        Args:
            gather: Says something and returns what all ranks have said, in their order.
            rank: Who speaks.
        """
        self.busy = False
        self._gather = gather
        self._rank = rank
        self._lost = False  # nobody hears this rank any more
        self._left = False  # another rank has left the block that this one is still in

    def exchange(self, stage: str, value: Any) -> list[Any]:
        """Say something and hear all ranks.

        Raises:
            RankLost: If a rank is gone.
            InvalidInput: If the ranks do not run the same program.
            Exception: What made another rank leave.
        """
        if self._left or self._lost:
            raise RankLost("another rank has left, so nothing can be dealt out any more. Run the command again.")
        said = pickle.dumps((stage, value))
        try:
            heard = [pickle.loads(each) for each in self._gather(said)]
        except RankLost:
            self._lost = True
            raise
        leaving = [rank for rank, (its, _) in enumerate(heard) if its == "leave"]
        if stage != "leave" and leaving:
            self._left = True
        if failure := next((heard[rank][1] for rank in leaving if heard[rank][1] is not None), None):
            raise failure.said()
        if len(stages := {its for its, _ in heard}) > 1:
            raise InvalidInput(
                f"the ranks do not run the same program: at one time they are at {sorted(stages)}. "
                f"Start all of them with the same command and the same versions of everything."
            )
        return [value for _, value in heard]

    def leave(self, error: Exception | None = None) -> None:
        """End a block that is run together, by an error or well.

        Raises:
            Exception: What made another rank leave, if this one leaves well.
        """
        if self._left or self._lost:
            self._left = False
            return
        if error is None:
            self.exchange("leave", None)
            return
        try:
            self.exchange("leave", Failure.of(error, self._rank))
        except Exception:
            return  # this rank has an error of its own to raise


@dataclass(frozen=True)
class Ranks:
    """A `Map` over the ranks of one job.

    Items are dealt out by `deal`. An error of an item is raised on all ranks, the first by the items' order, with the
    rank in its message. If a rank is gone there is no answer.

    Args:
        rank: Which one this is, from 0.
        size: How many there are.
        line: How they exchange results.

    Raises:
        RankLost: If a rank is gone.
        InvalidInput: If the ranks do not work on the same thing.

    Example:
        >>> alone = Ranks(0, 1, Line(lambda said: [said], 0))
        >>> alone(abs, [1, -2])
        [1, 2]
    """

    rank: int
    size: int
    line: Line = field(repr=False, compare=False)

    def __call__(
        self, function: Callable[[T], R], items: Sequence[T], /, *, about: str = "", cost: Callable[[T], float] = alike
    ) -> list[R]:
        """Do this rank's share and return the results of all."""
        if self.line.busy:
            return in_process(function, items)
        owners = deal([cost(item) for item in items], self.size)
        # A result of another network, or of another item, would make a certificate that is false.
        self._agree((about, f"{len(items)} items for {function.__qualname__}", owners))
        done, failure = self._share(function, items, owners)
        heard = self.line.exchange("end of a map", (done, failure))
        failures = [failure for _, failure in heard if failure is not None]
        if failures:
            raise min(failures, key=lambda failure: failure.index).said()
        return [pickle.loads(heard[owner][0][index]) for index, owner in enumerate(owners)]

    def _agree(self, plan: tuple[str, str, list[int]]) -> None:
        for rank, other in enumerate(plans := self.line.exchange("start of a map", plan)):
            for ours, theirs in zip(plans[0], other, strict=True):
                if ours != theirs:
                    raise InvalidInput(
                        f"the ranks do not work on the same thing: rank 0 has {ours}, rank {rank} has {theirs}. "
                        f"Every rank must build the same network: read its weights from a file (--state-dict), or "
                        f"seed the function that makes it."
                    )

    def _share(
        self, function: Callable[[T], R], items: Sequence[T], owners: list[int]
    ) -> tuple[dict[int, bytes], Failure | None]:
        """In the items' order, so that the first error of all is among the first errors of the ranks."""
        done: dict[int, bytes] = {}
        self.line.busy = True
        try:
            for index, owner in enumerate(owners):
                if owner == self.rank:
                    try:
                        done[index] = pickle.dumps(function(items[index]))
                    except Exception as error:
                        return {}, Failure.of(error, self.rank, index)
        finally:
            self.line.busy = False
        return done, None


@contextmanager
def together(over: Map) -> Iterator[None]:
    """A block that all ranks leave together: an error on one is raised on all.

    Example:
        >>> with together(in_process):
        ...     pass
    """
    if not isinstance(over, Ranks):
        yield
        return
    try:
        yield
    except Exception as error:
        over.line.leave(error)
        raise
    over.line.leave()


@contextmanager
def joined(*, patience: timedelta = timedelta(days=1), meeting: timedelta = timedelta(minutes=5)) -> Iterator[Map]:
    """Meet the other ranks that a launcher such as ``torchrun`` has started; alone, that is `in_process`.

    The block is left `together`. A process group that exists already is used and left as it is; otherwise one is made
    from the environment (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``), with NCCL for CUDA tensors where
    there are some, and ended with the block.

    Args:
        patience: Longest wait for a rank that is still at work. One that has died is noticed at once.
        meeting: Longest wait until all have come.

    Raises:
        InvalidInput: If there should be several ranks and they cannot be reached.
        RankLost: If one does not come.

    Example:
        >>> with joined() as over:
        ...     over(abs, [1, -2])
        [1, 2]
    """
    begun = dist.is_available() and dist.is_initialized()
    if (dist.get_world_size() if begun else _number("WORLD_SIZE", 1)) == 1:
        yield in_process
        return
    if not (dist.is_available() and dist.is_gloo_available()):
        raise InvalidInput("WORLD_SIZE asks for several ranks, but this torch has no gloo. Run one process instead.")
    if not begun:
        _number("RANK")
        _number("MASTER_PORT")
    try:
        if not begun:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            dist.init_process_group(backend, timeout=meeting)
        group: Any = dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError, OSError) as error:
        raise RankLost(f"the ranks did not meet within {meeting}: {error}. Start all of them again.") from error
    rank = dist.get_rank()
    try:
        ranks = Ranks(rank, dist.get_world_size(), Line(partial(_gather, group), rank))
        with together(ranks):
            yield ranks
    finally:
        dist.destroy_process_group(group if begun else None)


def _gather(group: Any, said: bytes) -> list[bytes]:
    heard: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(heard, said, group=group)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RankLost(
            f"another rank has died or cannot be reached, so the results are incomplete and there is no answer "
            f"({reason}). See what that rank or its launcher says (out of memory?), then run the command again."
        ) from error
    return heard


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise InvalidInput(f"the environment says {name}={text!r}, which is no number. Start the ranks with torchrun.")
    return int(text)
