"""Convolutional and residual networks: bounds, times, and what nobody can go below.

    python -m benchmarks.bench_conv [digits] [chains] [every_size] [others] [whole] [trunks] [resnet] [large]
        [grids] [--threads N] [--seconds S]

Every bound printed is proved by the float64 kernel with outward rounding. Networks that others trained are read from
beside the checkout; parts that need them say so and are left out without them. Times include the norms and the proof.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.conv_networks import resnet18, trained, trunk
from benchmarks.third_party import Net, networks
from benchmarks.versions import versions
from lipcert import solvers, trace, witness
from lipcert.certificate import Certificate
from lipcert.certifiers import Certifier, FourierLipSDP, LipSDP, Product
from lipcert.certifiers.lipsdp import Solved
from lipcert.graph import Graph
from lipcert.lmi import reduced
from lipcert.lmi.any_size import prove_any_size
from lipcert.lmi.sharing import PerChannel
from lipcert.lmi.torus import torus_form
from lipcert.solvers import Exchange
from lipcert.witness import Budget

CHAINS = {"C3_CH8": 7.6488, "C5_CH8": 27.56, "C9_CH8": 81.5, "C9_CH16": 61.6, "C9_CH32": 188.1}
"""Bounds asked for, beside the published ones that the networks' records hold."""


def timed(certifier: Certifier, graph: Graph) -> tuple[Certificate, float]:
    """A certificate and the seconds it took."""
    began = time.perf_counter()
    return certifier(graph), time.perf_counter() - began


def dual(solved: Solved) -> float:
    """What no multipliers go below, if one part is the whole network."""
    return solved.parts[0].solution.dual ** 0.5 if len(solved.parts) == 1 else 0.0


def below(model: nn.Module, graph: Graph, seconds: float = 5.0) -> float:
    """A reachable difference quotient."""
    generator = torch.Generator().manual_seed(0)
    return witness(model, graph.input.shape, budget=Budget(seconds=seconds), generator=generator).ratio


def found(*names: str) -> Iterator[tuple[Net, nn.Module, Graph]]:
    """The networks of others whose names hold one of these."""
    for net in networks():
        if len(net.shape) == 3 and any(name in net.name for name in names):
            model = net.build()
            yield net, model, trace(model, net.shape)


def digits(seconds: float) -> None:
    """What every step from one multiplier per channel to one per neuron buys, on 8x8 digits."""
    steps = [PerChannel(), PerChannel(border=1), PerChannel(2), PerChannel(4), PerChannel(4, 1), None]
    for net, model, graph in found("digits_cnn2_seed0", "digits_cnn3_seed0"):
        say(f"{net.name}: product {Product()(graph).bound:.4f}, witness {below(model, graph):.4f}")
        waves, took = timed(FourierLipSDP(seconds, dense=0), graph)
        say(f"  torus, one multiplier per channel, head apart: {waves.bound:.4f} in {took:.1f} s")
        for step in steps:
            certificate, took = timed(LipSDP(solvers.Auto(gap=1e-4, seconds=seconds), sharing=step), graph)
            say(f"  {step or 'one per neuron'}: {certificate.bound:.4f} in {took:.1f} s")


def chain(net: Net) -> tuple[Graph, int]:
    """The square convolutions after the first, with ReLUs between, as the published table has them."""
    convs = [module for module in net.build().modules() if isinstance(module, nn.Conv2d)][1:]
    layers = [module for conv in convs for module in (conv, nn.ReLU())][:-1]
    return trace(nn.Sequential(*layers).eval(), (convs[0].in_channels, 28, 28)), len(convs)


def chains(seconds: float) -> None:
    """The published table of chains of convolutions; the published values hold for every image size."""
    for net in networks():
        name = net.name.removeprefix("glipsdp_mnist_cnn_")
        if name not in CHAINS:
            continue
        graph, _ = chain(net)
        product = Product()(graph).bound
        began = time.perf_counter()
        solved = FourierLipSDP(seconds).solve(graph)
        took = time.perf_counter() - began
        say(
            f"{name}: {solved.certificate.bound:.4f} (dual {dual(solved):.4f}, asked {CHAINS[name]}) in {took:.1f} s; "
            f"published {published(net)}; product {product:.2f}"
        )


def every_size(seconds: float) -> None:
    """The shorter chains for images of every size, as the published bounds are, from a grid of 256 x 256 angles."""
    for net in networks():
        name = net.name.removeprefix("glipsdp_mnist_cnn_")
        if name not in ("C3_CH8", "C5_CH8", "C9_CH8"):
            continue
        graph, _ = chain(net)
        began = time.perf_counter()
        form = torus_form(graph, graph.input.name, graph.output.name, (256, 256))
        small = reduced(form.at(form.frequencies()))
        solution = Exchange(seconds=seconds)(small)
        bound = prove_any_size(form, small, solution.multipliers)
        took = time.perf_counter() - began
        say(f"{name}: {bound:.4f} in {took:.1f} s, at this size {solution.rho**0.5:.4f}; published {published(net)}")


def published(net: Net) -> str:
    """The published bound and its time."""
    return f"{net.published['GLipSDP']:.4f} in {net.published['t_GLipSDP_s']:.2f} s"


def others(seconds: float) -> None:
    """Every other convolutional network of others."""
    for net, model, graph in found("LeNet5", "resnet2b", "cifar_base", "cnn_a_adv", "conv_small", "cnn_small", "C3_CH"):
        compared(net.name, model, graph, FourierLipSDP(seconds))


def whole(seconds: float) -> None:
    """What is left of the convolutional networks of others: whole chains with their heads, digits, denoisers."""
    for net, model, graph in found("digits_cnn", "mnist_cnn_C5", "mnist_cnn_C9", "averaged_cnn", "realsn"):
        compared(net.name, model, graph, FourierLipSDP(seconds))


def trunks(seconds: float) -> None:
    """Networks of the size of CIFAR, trained if the images are there."""
    for strides, channels in (((2, 1, 2, 1, 1, 1), 64), ((1, 1, 1, 1), 32)):
        torch.manual_seed(0)
        model, accuracy = trained(trunk(strides, channels), 3)
        graph = trace(model, (3, 32, 32))
        state = "untrained" if accuracy is None else f"test accuracy {accuracy:.3f}"
        compared(f"strides {strides}, {channels} channels, {state}", model, graph, FourierLipSDP(seconds))


def resnet(seconds: float) -> None:
    """ResNet-18 for 32x32 images, trained if they are there."""
    torch.manual_seed(0)
    model, accuracy = trained(resnet18(), 1)
    graph = trace(model, (3, 32, 32))
    state = "untrained" if accuracy is None else f"test accuracy {accuracy:.3f}"
    compared(f"ResNet-18, 32x32, {state}", model, graph, FourierLipSDP(seconds))


def large(seconds: float) -> None:
    """ResNet-18's residual blocks on 224x224 images, one constraint for every block."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    model = nn.Sequential(*stem, *list(resnet18())[3:]).eval()
    compared("ResNet-18, 224x224", model, trace(model, (3, 224, 224)), FourierLipSDP(seconds, largest=800))


def grids(seconds: float) -> None:
    """One multiplier per channel on a torus against one per neuron, on random nets whose images grow."""
    generator = torch.Generator().manual_seed(0)
    for channels in ((1, 2, 2, 1), (2, 3, 3, 2), (1, 4, 2)):
        ratios = []
        for size in (4, 6, 8, 12, 14):
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(channels):
                conv = nn.Conv2d(a, b, 3, 1, 1)
                conv.weight.data = torch.randn(conv.weight.shape, generator=generator) / (9 * a) ** 0.5
                layers += [conv, nn.ReLU()]
            graph = trace(nn.Sequential(*layers[:-1]).eval(), (channels[0], size, size))
            waves, neurons = FourierLipSDP(seconds)(graph).bound, LipSDP(solvers.Auto(gap=1e-4))(graph).bound
            ratios.append(f"{size}x{size} {waves / neurons:.4f}")
        say(f"channels {channels}: " + ", ".join(ratios))


def compared(name: str, model: nn.Module, graph: Graph, certifier: FourierLipSDP) -> None:
    """One line: witness, bound, product, time and memory."""
    product, before = timed(Product(), graph)
    certificate, took = timed(certifier, graph)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(
        f"{name}: {below(model, graph):.4g} <= {certificate.bound:.5g} in {took:.1f} s, product {product.bound:.5g} in "
        f"{before:.1f} s ({product.bound / certificate.bound:.3g} x), peak memory so far {memory:.1f} GB"
    )


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


PARTS: dict[str, Callable[[float], None]] = {
    part.__name__: part for part in (digits, chains, every_size, others, whole, trunks, resnet, large, grids)
}


def main() -> None:
    """Run the parts asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0, help="for the solvers")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    say(f"{versions('torch', 'numpy')}, {asked.threads} threads")
    for part in asked.parts or PARTS:
        say(f"\n# {part}: {PARTS[part].__doc__}")
        PARTS[part](asked.seconds)


if __name__ == "__main__":
    main()
