"""Several ranks answer as one: every item once, the same certificate to the bit, one error for all, never half of one.

Most laws run on ranks that are threads; those about the wire and the command line on processes.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipcert import L2, LINF, answers, trace
from lipcert.certificate import Multipliers
from lipcert.certifiers import Auto, Best, FourierLipSDP, LipSDP, Product, Split
from lipcert.errors import InvalidInput, NotFinite, RankLost, UnsupportedOperation
from lipcert.lmi import waves
from lipcert.ranks import Line, Ranks, deal, in_process, joined, together

ROOT = Path(__file__).parent.parent
SHAPE = (1, 6, 6)

NETS = """
import os, signal
import torch
from torch import nn
import lipcert.certifiers.product as product

def conv():
    torch.manual_seed(0)
    head = nn.Linear(36, 9), nn.ReLU(), nn.Softmax(1), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), *head)

def killed():
    if os.environ["RANK"] == "1":
        product.opnorm = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return conv()
"""


def network(seed: int = 0) -> nn.Module:
    """Convolutions with and without a batch norm, and two parts with a softmax between them."""
    torch.manual_seed(seed)
    head = nn.Linear(36, 9), nn.ReLU(), nn.Softmax(1), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), *head).eval()


def simulated(size: int, program: Callable[[Ranks], Any]) -> list[Any]:
    """What the program returns or raises on ranks that are threads; a rank that is over breaks the line."""
    barrier, said, outcomes = threading.Barrier(size), [b""] * size, [None] * size

    def gather(rank: int, words: bytes) -> list[bytes]:
        try:
            said[rank] = words
            barrier.wait(10)
            heard = list(said)
            barrier.wait(10)
        except threading.BrokenBarrierError as error:
            raise RankLost("broken") from error
        return heard

    def run(rank: int) -> None:
        ranks = Ranks(rank, size, Line(lambda words: gather(rank, words), rank))
        try:
            with together(ranks):
                outcomes[rank] = program(ranks)
        except Exception as error:
            outcomes[rank] = error
        except SystemExit:  # it dies without a word, and its connections close
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


COSTS = st.lists(st.floats(0.0, 1e30), max_size=12)


@given(COSTS, st.integers(1, 5))
def test_every_item_is_done_once_and_the_order_is_kept(costs: list[float], size: int):
    done: list[int] = []

    def work(index: int) -> tuple[int, float]:
        done.append(index)
        return index, costs[index]

    items = range(len(costs))
    answers = simulated(size, lambda over: over(work, items, cost=lambda index: costs[index]))
    assert answers == [in_process(work, items)] * size
    assert sorted(done) == sorted([*items, *items])


@given(COSTS, st.integers(1, 5))
def test_no_rank_has_more_than_the_mean_and_one_item(costs: list[float], size: int):
    loads = [0.0] * size
    for cost, owner in zip(costs, deal(costs, size), strict=True):
        loads[owner] += cost
    assert max(loads) <= math.fsum(costs) / size + max(costs, default=0.0) * (1 + 1e-9)


def test_items_of_no_cost_are_shared_evenly():
    assert sorted(deal([0.0] * 6, 3)) == [0, 0, 1, 1, 2, 2]


@given(st.lists(st.booleans(), max_size=9), st.integers(1, 4))
def test_the_first_error_is_raised_on_all_ranks_and_names_its_own(failing: list[bool], size: int):
    def work(index: int) -> int:
        if failing[index]:
            raise UnsupportedOperation(f"item {index}", path=f"layer {index}")
        return index

    items = range(len(failing))
    owners = deal([1.0] * len(failing), size)
    for answer in simulated(size, lambda over: over(work, items)):
        if True in failing:
            first = failing.index(True)
            assert type(answer) is UnsupportedOperation
            assert (answer.path, str(answer)) == (f"layer {first}", f"item {first} (On rank {owners[first]}.)")
        else:
            assert answer == list(items)


class Stubborn(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("stubborn")


@pytest.mark.parametrize("error", [ZeroDivisionError("inside"), Stubborn(1, 2), OSError(2, "no file")])
def test_foreign_errors_arrive_with_their_traceback(error: Exception):
    def work(item: int) -> None:
        raise error

    for answer in simulated(2, lambda over: over(work, [0])):
        assert type(answer) is (RuntimeError if isinstance(error, Stubborn) else type(error))
        assert str(error) in str(answer)
        assert "On rank 0" in answer.__notes__[0]
        assert "in work" in answer.__notes__[0]


def test_what_cannot_be_sent_is_an_error_on_all_ranks():
    for answer in simulated(2, lambda over: over(lambda item: lambda: item, [0, 1])):
        assert isinstance(answer, Exception)
        assert "pickle" in str(answer)


def test_a_map_within_an_item_is_done_where_the_item_is():
    def program(over: Ranks) -> list[list[int]]:
        return over(lambda n: over(abs, range(-n, 0)), [3, 1, 2])

    assert simulated(2, program) == [[[3, 2, 1], [1], [2, 1]]] * 2


def test_ranks_that_are_about_different_things_are_refused_on_all():
    for differ in (
        lambda over: over(abs, [1], about=f"network {over.rank}"),
        lambda over: over(abs, [1] * (over.rank + 1)),
        lambda over: over((abs, float)[over.rank], [1]),
        lambda over: over(abs, [1, 2], cost=lambda item: item * (1 - 2 * over.rank)),
    ):
        for answer in simulated(2, differ):
            assert isinstance(answer, InvalidInput)
            assert "do not work on the same thing" in str(answer)


@pytest.mark.parametrize("by", [Product, LipSDP, FourierLipSDP, Auto])
def test_certificates_are_not_made_of_two_networks(by: Callable[..., Any]):
    with torch.random.fork_rng():
        graphs = [trace(network(seed), SHAPE) for seed in range(2)]
    for answer in simulated(2, lambda over: by(over=over)(graphs[over.rank])):
        assert isinstance(answer, InvalidInput)
        assert all(graph.digest() in str(answer) for graph in graphs)


def test_an_error_beside_the_items_reaches_the_others_wherever_they_are():
    def program(over: Ranks) -> list[int]:
        if over.rank == 1:
            raise NotFinite("a weight is NaN")
        return over(abs, [1, 2])

    first, second, third = simulated(3, program)
    assert str(second) == "a weight is NaN"
    for answer in (first, third):
        assert (type(answer), str(answer)) == (NotFinite, "a weight is NaN (On rank 1.)")
    last = simulated(2, lambda over: 1 / over.rank)
    assert all(isinstance(answer, ZeroDivisionError) for answer in last)


def test_a_rank_that_has_left_is_not_waited_for_again():
    refused = UnsupportedOperation("no rule", path="0")

    def program(over: Ranks) -> object:
        if over.rank == 1:
            raise refused
        with pytest.raises(UnsupportedOperation):
            over(abs, [1])
        return over(abs, [1])

    first, second = simulated(2, program)
    assert isinstance(first, RankLost)
    assert "another rank has left" in str(first)
    assert second is refused


def test_programs_that_do_not_agree_are_refused():
    for answer in simulated(2, lambda over: over(abs, [1]) if over.rank else None):
        assert isinstance(answer, InvalidInput)
        assert "do not run the same program" in str(answer)


@pytest.mark.parametrize("dies", ["in an item", "between items"])
def test_a_dead_rank_leaves_no_partial_answer(dies: str):
    def work(item: int) -> int:
        if item == 1 and dies == "in an item":
            raise SystemExit
        return item

    def program(over: Ranks) -> list[int]:
        if over.rank == 1 and dies == "between items":
            raise SystemExit
        return over(work, [0, 1])

    first, second = simulated(2, program)
    assert isinstance(first, RankLost)
    assert second is None


def test_certifiers_that_fall_back_do_so_together():
    with torch.random.fork_rng():
        graph = trace(network(), SHAPE)
    certify = lambda over: Best(LipSDP(over=over), Product(over=over))(graph, LINF)  # noqa: E731
    assert simulated(2, certify) == [certify(in_process)] * 2


def test_where_things_run_is_no_part_of_a_method():
    alone = Ranks(0, 1, Line(lambda said: [said], 0))
    for one, other in ((Product, Product(over=alone)), (LipSDP, LipSDP(over=alone)), (Auto, Auto(over=alone))):
        assert (one(), repr(one()), hash(one())) == (other, repr(other), hash(other))


def certificates(over: Any) -> list[str]:
    """Every kind of work item, in methods that no clock stops."""
    graph = trace(network(), SHAPE)
    norms = Product(over=over)
    split = Split(LipSDP(over=over), parts=3, product=norms)
    certifiers = norms, LipSDP(over=over), Auto(600.0, over=over), split
    return [norms(graph, LINF).to_json(), *(certify(graph, L2).to_json() for certify in certifiers)]


def test_the_same_certificates_from_ranks_that_are_threads():
    # Threads share torch's random state, so the network is made before.
    with torch.random.fork_rng():
        graph = trace(network(), SHAPE)
    for by in (Product, LipSDP):
        assert simulated(3, lambda over, by=by: by(over=over)(graph).to_json()) == [by()(graph).to_json()] * 3


def test_frequencies_are_dealt_out_as_well(monkeypatch: pytest.MonkeyPatch):
    with torch.random.fork_rng():
        graph = trace(network(), SHAPE)
    monkeypatch.setattr(waves, "_CHUNK_BYTES", 1)
    alone = FourierLipSDP(dense=0)(graph)
    assert isinstance(alone.evidence, Multipliers)
    assert any(block.torus for block in alone.evidence.blocks)
    assert simulated(2, lambda over: FourierLipSDP(dense=0, over=over)(graph).to_json()) == [alone.to_json()] * 2


def rank_of_two(rank: int, folder: str) -> None:
    """One of two processes: leaves a file with what it has answered, refused and raised."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}

    def refused(name: str, program: Callable[[Any], object]) -> None:
        try:
            with joined() as over:
                program(over)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    with joined() as over:
        found["certificates"] = certificates(over)
        found["shares"] = over(lambda item: rank, range(4))
    refused("item", lambda over: over(lambda item: [1 / item for _ in [0]], [1, 0]))
    refused("network", lambda over: Product(over=over)(trace(network(rank), SHAPE)))
    refused("alone", lambda over: 1 / rank)
    found["begun"] = dist.is_initialized()
    dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.xdist_group("processes")
def test_two_processes_answer_as_one_to_the_bit(tmp_path: Path):
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    mp.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    with torch.random.fork_rng():
        assert first["certificates"] == second["certificates"] == certificates(in_process)
    assert first["shares"] == second["shares"] == [0, 1, 0, 1]
    assert first["item"] == second["item"] == "ZeroDivisionError: division by zero"
    assert "the network sha256:" in first["network"]
    assert first["network"] == second["network"]
    assert first["alone"] == "ZeroDivisionError: division by zero"
    assert "alone" not in second or second["alone"] == first["alone"]
    assert first["begun"]
    assert second["begun"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(folder)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.xdist_group("processes")
def test_a_killed_rank_ends_the_other_with_a_reason_and_no_certificate(tmp_path: Path):
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    (tmp_path / "ranks_nets.py").write_text(NETS)
    command = [sys.executable, "-m", "lipcert", "certify", "ranks_nets:killed", "--input-shape", "1,6,6"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    ranks = [
        subprocess.Popen([*command, "--out", "cert.json"], env=environment(tmp_path, RANK=rank, **where), **pipes)
        for rank in "01"
    ]
    (said, error), (silent, quiet) = (process.communicate(timeout=120) for process in ranks)
    assert [process.returncode for process in ranks] == [answers.Status.UNKNOWN, -signal.SIGKILL]
    assert (said, silent, quiet) == ("", "", "")
    reasons = [line for line in error.splitlines() if line.startswith("RankLost: another rank has died")]
    assert len(reasons) == 1
    assert "there is no answer" in reasons[0]
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} <= {"ranks_nets.py", "__pycache__"}


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("checkpoints", [0, 3])
def test_the_command_under_torchrun_writes_and_says_what_it_does_alone(tmp_path: Path, checkpoints: int):
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    (tmp_path / "ranks_nets.py").write_text(NETS)
    options = []
    for seed in range(checkpoints):
        torch.save(network(seed).state_dict(), tmp_path / f"seed{seed}.pt")
        options += ["--state-dict", f"seed{seed}.pt"]
    for folder in ("alone", "ranks"):
        (tmp_path / folder).mkdir()
    spoken = {}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    for folder, launcher in (("alone", []), ("ranks", launch)):
        out = folder if checkpoints else f"{folder}/cert.json"
        command = ["-m", "lipcert", "certify", "ranks_nets:conv", "--input-shape", "1,6,6", *options]
        run = subprocess.run(
            [sys.executable, *launcher, *command, "--seconds", "600", "--out", out, "--json"],
            env=environment(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        spoken[folder] = [json.loads(line) for line in run.stdout.replace(f"{folder}/", "").splitlines()]
    assert spoken["alone"] == spoken["ranks"]
    assert len(spoken["ranks"]) == max(1, checkpoints)
    written = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "ranks").iterdir()} == written
    assert len(written) == 2 * max(1, checkpoints)


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the command line believe that it is one of several ranks, which all say the same."""

    def take(rank: int) -> None:
        ranks = Ranks(rank, 1, Line(lambda said: [said], rank))
        monkeypatch.setattr(answers, "joined", lambda: nullcontext(ranks))

    return take


def test_a_launcher_that_stops_a_rank_gets_a_reason_and_the_signal_back(seat: Callable[[int], None]):
    before = signal.getsignal(signal.SIGTERM)
    seat(0)
    with pytest.raises(RankLost, match="told to stop"), answers.seated():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_speaks_for_all(rank: int, seat: Callable[[int], None], capsys: pytest.CaptureFixture[str]):
    seat(rank)
    for _ in range(2):
        with answers.seated():
            answers.tell("certify", "PROVED", {"bound": 1.0}, "text", True, answers.Status.YES)
            sys.stderr.write("progress")
    said = capsys.readouterr()
    assert (len(said.out.splitlines()), said.err) == ((2, "progressprogress"), (0, ""))[rank]


def test_a_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        with joined() as over:
            assert over is in_process


@pytest.mark.parametrize("size", ["two", "-1", "2"])
def test_an_environment_that_makes_no_sense_is_refused(size: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidInput, match="torchrun"), joined():
        pass


def test_several_ranks_need_a_torch_that_has_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with joined() as over:
        assert over is in_process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="Run one process"), joined():
        pass
