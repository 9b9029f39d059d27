"""Two processes train as one: DistributedDataParallel and fully sharded parameters, two passes before one backward."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lipcert.parametrizations import Deployed, Everywhere, aol, orthogonal, orthogonal_convolution, spectral_norm

STEPS = 3
SHARDED = {"DDP": False, "FSDP2": True}
KINDS = {"deployed": Deployed(), "rechecked": Deployed(2), "everywhere": Everywhere(0.05)}

NAMES = (*KINDS, "by construction")


def network(kind: str) -> nn.Module:
    """A critic whose every layer carries a claim."""
    torch.manual_seed(0)
    conv, hidden, head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(32, 6), nn.Linear(6, 2)
    if kind == "by construction":
        return nn.Sequential(orthogonal_convolution(conv), nn.ReLU(), nn.Flatten(), orthogonal(hidden), aol(head))
    level = KINDS[kind]
    put = lambda layer, size=None: spectral_norm(layer, input_size=size, level=level)  # noqa: E731
    return nn.Sequential(put(conv, (4, 4)), nn.ReLU(), nn.Flatten(), put(hidden), nn.ReLU(), put(head))


def data(step: int) -> Tensor:
    return torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(step))


def trained(model: nn.Module, share: slice) -> nn.Module:
    """Two forward passes, as a critic has on real and fake images, then one backward pass."""
    rule = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(STEPS):
        real, fake = data(step)
        rule.zero_grad()
        (model(real[share]).square().mean() - 0.3 * model(fake[share]).abs().mean()).backward()
        rule.step()
    return model


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def work(rank: int, folder: str) -> None:
    """One of two processes: every kind of network, copied and sharded, a file for each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for kind, sharded in itertools.product(NAMES, SHARDED):
        model = network(kind)
        if SHARDED[sharded]:
            for layer in model:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        else:
            model = DistributedDataParallel(model)
        trained(model, slice(2 * rank, 2 * rank + 2))
        parameters = [whole(parameter.detach()) for parameter in model.parameters()]
        torch.save((parameters, model.eval()(data(99)[0]).detach()), f"{folder}/{kind} {sharded} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    made = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (str(made),), nprocs=2)
    return made


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("sharded", SHARDED)
@pytest.mark.parametrize("kind", NAMES)
def test_two_processes_train_as_one(folder: Path, kind: str, sharded: str):
    start = network(kind)
    alone = trained(copy.deepcopy(start), slice(None))
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), alone.parameters(), strict=True))
    outputs = alone.eval()(data(99)[0]).detach()
    for rank in range(2):
        parameters, distributed = torch.load(folder / f"{kind} {sharded} {rank}.pt")
        torch.testing.assert_close(distributed, outputs, rtol=1e-5, atol=1e-6)
        for one, other in zip(parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)
