"""One case per spelling of every operation that has a rule: the source text of a module, or of a function of x."""

from __future__ import annotations

import operator
import re
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipcert.nn as L


def W(*shape: int) -> Tensor:
    """A constant weight with entries that differ, exact in float32."""
    size = int(torch.tensor(shape).prod())
    return ((torch.arange(size) * 37 % 23 - 11) / 16).reshape(shape)


NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "operator": operator, "L": L, "W": W}


class Spelled(nn.Module):
    """The function that a piece of source text says."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        constants = dict.fromkeys(re.findall(r"W\([\d, ]+\)", source))
        for number, constant in enumerate(constants):
            source = source.replace(constant, f"self.W{number}")
            self.register_buffer(f"W{number}", eval(constant, NAMES))
        self.run = types.MethodType(eval(f"lambda self, x: {source}", NAMES), self)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


@dataclass(frozen=True)
class Operation:
    """The source of a module or of a function of x, and the shape of one sample."""

    source: str
    input_shape: tuple[int, ...]

    def model(self) -> nn.Module:
        """Build it, in evaluation mode, with weights that are all different."""
        model = eval(self.source, NAMES) if self.source.startswith(("nn.", "L.")) else Spelled(self.source)
        for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                tensor.data = W(*tensor.shape) + 0.125 * number
        if isinstance(model, nn.modules.batchnorm._BatchNorm) and model.running_var is not None:
            model.running_var.abs_().add_(0.25)
        return model.eval()


def _spelled(shape: tuple[int, ...], *sources: str) -> dict[str, Operation]:
    return {f"{source} on {shape}": Operation(source, shape) for source in sources}


VECTOR, MATRIX, IMAGE, ODD = (6,), (4, 6), (4, 6, 6), (2, 7, 5)

VIEWS = _spelled(
    IMAGE,
    "x.view(len(x), -1)",
    "x.view(-1, 4, 36)",
    "x.view(x.size(0), x.size(1), 2, -1)",
    "x.reshape(x.shape[0], 8, 18)",
    "x.reshape((len(x), 24, 6))",
    "torch.reshape(x, (-1, 6, 24))",
    "torch.reshape(x, shape=(-1, 144))",
    "x.view_as(x.flatten(1))",
    "x.flatten(1).reshape_as(x)",
    "x[:, :1].expand(-1, 3, -1, -1)",
    "x[:, :1].expand(len(x), 3, 6, 6)",
    "x[:, :1].expand_as(x)",
    "x[:, :1].broadcast_to((len(x), 3, 6, 6))",
    "torch.broadcast_to(x[:, :1], (len(x), 3, 6, 6))",
    "x[:, :1].squeeze(1)",
    "torch.squeeze(x[:, :1], dim=1)",
    "x.flatten(1, 2)",
    "torch.flatten(x, 1)",
    "x.unflatten(1, (2, 2))",
    "torch.unflatten(x, 1, (2, 2))",
    "x.permute(0, 3, 1, 2)",
    "torch.permute(x, (0, 2, 3, 1))",
    "x.transpose(1, 3)",
    "torch.transpose(x, 1, 2)",
    "x.swapaxes(1, 3)",
    "torch.swapaxes(x, 1, 3)",
    "x.swapdims(1, 3)",
    "torch.swapdims(x, 1, 3)",
    "x.movedim(1, -1)",
    "torch.movedim(x, 1, -1)",
    "x.moveaxis(1, -1)",
    "torch.moveaxis(x, 1, -1)",
    "x.unsqueeze(1)",
    "torch.unsqueeze(x, 2)",
    "x.flip(1, 3)",
    "torch.flip(x, (1,))",
    "x.roll(1, 2)",
    "torch.roll(x, (1, 2), (1, 2))",
    "x.narrow(1, 1, 2)",
    "torch.narrow(x, 2, 0, 3)",
    "x.select(1, 2)",
    "torch.select(x, 2, 1)",
    "x.chunk(2, 1)[1]",
    "torch.chunk(x, 3, dim=2)[0]",
    "x.split(2, 1)[1]",
    "torch.split(x, (1, 3), dim=1)[1]",
    "x.tensor_split(3, 1)[0]",
    "torch.tensor_split(x, 3, dim=1)[0]",
    "x.unbind(1)[2]",
    "torch.unbind(x, 2)[0]",
    "x.index_select(1, torch.tensor([0, 0, 3]))",
    "torch.index_select(x, 2, torch.tensor([5, 1]))",
    "x.repeat(1, 2, 1, 1)",
    "x.repeat_interleave(2, dim=1)",
    "torch.repeat_interleave(x, 2, dim=2)",
    "x.tril()",
    "torch.tril(x, -1)",
    "x.triu()",
    "torch.triu(x, 1)",
    "x.diagonal(0, 2, 3)",
    "torch.diagonal(x, 0, 2, 3)",
    "x.mT",
    "x[:, 1]",
    "x[:, [2, 0, 0]]",
    "x[:, torch.tensor([3, 1])]",
    "x[:, torch.tensor([True, False, True, False])]",
    "x[..., 0]",
    "x[:, None, ..., ::2]",
    "x[:, :, 1:4, -1]",
    "sum(c for c in x.chunk(2, 1))",
    "(lambda a, b: a - b)(*x.split(2, dim=1))",
    "nn.Flatten()",
    "nn.Flatten(2)",
    "nn.Unflatten(1, (2, 2))",
    "nn.PixelShuffle(2)",
    "nn.PixelUnshuffle(3)",
    "nn.ChannelShuffle(2)",
    "F.pixel_shuffle(x, 2)",
    "F.pixel_unshuffle(x, 2)",
    "F.channel_shuffle(x, 2)",
    "torch.cat([x, 2 * x], 1)",
    "torch.cat((x, x), dim=-1)",
    "torch.concat([x, x], dim=2)",
    "torch.concatenate([x, x], dim=1)",
    "torch.stack([x, -x], 1)",
    "torch.stack([x, x, x], dim=-1)",
    "nn.Identity()",
    "x.contiguous()",
    "x.clone().add_(1) + x",
    "torch.clone(x)",
    "x.detach()",
    "torch.detach(x)",
    "x.requires_grad_()",
    "x.cpu()",
    "x.double()",
    "x.data",
    "x.to('cpu')",
    "x.to(torch.float64)",
    "x.to(x.dtype)",
    "x.type_as(x.flatten(1))",
    "nn.Dropout(0.5)",
    "nn.Dropout2d(0.5)",
    "nn.AlphaDropout(0.5)",
    "nn.FeatureAlphaDropout(0.5)",
    "F.dropout(x, training=False)",
    "F.dropout(x, 0.0)",
    "F.dropout2d(x, 0.3, False)",
    "F.alpha_dropout(x)",
    "F.feature_alpha_dropout(x, 0.2)",
    "torch.dropout(x, 0.5, False)",
    "torch.feature_dropout(x, 0.5, train=False)",
    "torch.alpha_dropout(x, 0.5, False)",
    "torch.feature_alpha_dropout(x, 0.5, False)",
    "x * x.shape[1] / x.ndim + x.numel() // x.size(0)",
)
DROPOUTS = _spelled(MATRIX, "nn.Dropout1d(0.5)", "F.dropout1d(x, 0.5, False)") | _spelled(
    (2, 3, 3, 3), "nn.Dropout3d(0.5)", "F.dropout3d(x, 0.5, training=False)"
)

ARITHMETIC = _spelled(
    MATRIX,
    "x + 1.5",
    "2 + x",
    "x + x",
    "x + W(6)",
    "W(4, 1) + x",
    "x + W(1, 4, 6)",
    "x[:, :1] + W(4, 6)",
    "x + x[:, :1]",
    "torch.add(x, 3, alpha=2)",
    "torch.add(x, torch.relu(x), alpha=-2)",
    "x.add(x)",
    "torch.relu(x).add_(x)",
    "operator.iadd(x * 1, x)",
    "x - 1",
    "1 - x",
    "x - x.relu()",
    "torch.sub(x, x.relu(), alpha=3)",
    "torch.subtract(x, 2)",
    "x.sub(W(6))",
    "(x * 1).sub_(x)",
    "x.subtract(1)",
    "operator.isub(x * 1, 1)",
    "W(4, 6) - x",
    "torch.rsub(x, 1)",
    "torch.rsub(x, x.tanh(), alpha=2)",
    "-x",
    "+x",
    "torch.neg(x)",
    "torch.negative(x)",
    "x.neg()",
    "(x * 2).neg_()",
    "x.negative()",
    "torch.positive(x)",
    "x.positive()",
    "0.1 * x",
    "x * W(6)",
    "W(4, 1) * x",
    "x[:, :1] * W(4, 6)",
    "x * True",
    "torch.mul(x, -3)",
    "torch.multiply(x, W(6))",
    "x.mul(2)",
    "x.clone().mul_(0.3)",
    "x.multiply(2)",
    "operator.imul(x * 1, 3)",
    "x / 2",
    "x / 3",
    "x / W(6)",
    "operator.itruediv(x * 1, 7)",
    "torch.div(x, 10)",
    "torch.divide(x, -0.3)",
    "torch.true_divide(x, 4)",
    "x.div(5)",
    "x.clone().div_(5)",
    "x.divide(5)",
)

LINEAR = _spelled(
    MATRIX,
    "nn.Linear(6, 3)",
    "nn.Linear(6, 3, bias=False)",
    "F.linear(x, W(3, 6))",
    "F.linear(x, W(3, 6), W(3))",
    "F.linear(x, W(3, 6).neg().flip(0))",
    "torch.matmul(x, W(6, 2))",
    "x.matmul(W(6, 2))",
    "x @ W(6, 2)",
    "x @ W(6)",
    "W(3, 4) @ x",
    "torch.matmul(W(3, 4), x)",
    "operator.imatmul(x * 1, W(6, 6))",
) | _spelled(
    VECTOR,
    "nn.Linear(6, 3)",
    "torch.mm(x, W(6, 2))",
    "x.mm(W(6, 2))",
    "torch.addmm(W(2), x, W(6, 2))",
    "torch.addmm(W(1, 2), x, W(6, 2))",
    "W(2).addmm(x, W(6, 2))",
)

CONVOLUTIONS = (
    _spelled(
        IMAGE,
        "nn.Conv2d(4, 3, 3)",
        "nn.Conv2d(4, 2, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)",
        "nn.Conv2d(4, 2, 2, stride=(1, 2), padding=(0, 1), dilation=(2, 3))",
        "nn.Conv2d(4, 2, (3, 2), padding='same')",
        "nn.Conv2d(4, 2, (2, 4), padding='same', padding_mode='circular')",
        "nn.Conv2d(4, 2, 3, padding='valid')",
        "nn.Conv2d(4, 2, 3, stride=(1, 2), padding=(2, 1), padding_mode='circular')",
        "nn.Conv2d(4, 2, 3, padding=2, padding_mode='reflect')",
        "nn.Conv2d(4, 2, 5, padding=3, padding_mode='replicate')",
        "nn.ConvTranspose2d(4, 3, 3)",
        "nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)",
        "nn.ConvTranspose2d(4, 2, 2, stride=1, dilation=3, output_padding=2, padding=(0, 1))",
        "F.conv2d(x, W(2, 4, 3, 3))",
        "F.conv2d(x, W(2, 4, 3, 2), W(2), padding='same')",
        "torch.conv2d(x, W(4, 2, 3, 3), None, 2, 1, 1, 2)",
        "F.conv_transpose2d(x, W(4, 2, 3, 3), W(2), 2, 1, 1)",
    )
    | _spelled(
        MATRIX,
        "nn.Conv1d(4, 2, 3, padding=1)",
        "nn.Conv1d(4, 2, 3, padding=2, padding_mode='reflect')",
        "nn.ConvTranspose1d(4, 2, 3, 2)",
        "F.conv1d(x, W(2, 4, 3), padding=1)",
        "F.conv_transpose1d(x, W(4, 2, 3))",
    )
    | _spelled(
        (2, 3, 4, 3),
        "nn.Conv3d(2, 2, 2, padding=1)",
        "nn.Conv3d(2, 2, 3, padding=1, padding_mode='circular')",
        "nn.ConvTranspose3d(2, 1, 2, 2)",
        "F.conv3d(x, W(1, 2, 2, 2, 2))",
        "F.conv_transpose3d(x, W(2, 1, 2, 2, 2))",
    )
)

POOLS = (
    _spelled(
        ODD,
        "nn.AvgPool2d(2)",
        "nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)",
        "nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)",
        "nn.AvgPool2d((2, 3), (1, 2), divisor_override=5)",
        "F.avg_pool2d(x, 2, ceil_mode=True)",
        "F.avg_pool2d(x, (3, 1), stride=2, padding=(1, 0))",
        "nn.AdaptiveAvgPool2d((3, None))",
        "nn.AdaptiveAvgPool2d(1)",
        "F.adaptive_avg_pool2d(x, (2, 4))",
        "nn.MaxPool2d(2)",
        "nn.MaxPool2d(3, 2, 1, ceil_mode=True)",
        "nn.MaxPool2d(2, 1, 1, dilation=2)",
        "nn.MaxPool2d((3, 2), stride=(1, 2))",
        "F.max_pool2d(x, 3, 2, 1)",
        "F.max_pool2d(x, 2, ceil_mode=True)",
        "torch.max_pool2d(x, 2)",
        "nn.AdaptiveMaxPool2d((3, 2))",
        "F.adaptive_max_pool2d(x, 3)",
        "x.mean((2, 3))",
        "torch.mean(x, dim=1, keepdim=True)",
        "x.sum(-1)",
        "torch.sum(x, (1, 3), keepdim=True)",
        "x.amax((2, 3))",
        "torch.amax(x, 1, keepdim=True)",
        "x.amin(2)",
        "torch.amin(x, (1, 2))",
        "torch.max(x, 1)[0]",
        "torch.max(x, dim=2, keepdim=True).values",
        "x.max(1).values",
        "torch.min(x, 1)[0]",
        "x.min(3)[0]",
        "torch.max(x, x.mean((2, 3), keepdim=True))",
        "torch.min(x, -2 * x)",
        "torch.maximum(x, -x)",
        "x.maximum(0.5 * x)",
        "torch.minimum(x, 0.5 * x)",
        "x.minimum(0.5 * x)",
        "torch.fmax(x, 0.5 * x)",
        "torch.fmin(x, 0.5 * x)",
    )
    | _spelled(
        MATRIX,
        "nn.AvgPool1d(3, 1, 1)",
        "nn.AvgPool1d(4, 3, 2, ceil_mode=True, count_include_pad=False)",
        "F.avg_pool1d(x, 2)",
        "nn.AdaptiveAvgPool1d(4)",
        "F.adaptive_avg_pool1d(x, 5)",
        "nn.MaxPool1d(3, 2, 1)",
        "F.max_pool1d(x, 2)",
        "torch.max_pool1d(x, 3, 1)",
        "nn.AdaptiveMaxPool1d(4)",
        "F.adaptive_max_pool1d(x, 4)",
    )
    | _spelled(
        (2, 4, 5, 4),
        "nn.AvgPool3d(2, padding=1, ceil_mode=True)",
        "F.avg_pool3d(x, (1, 2, 3))",
        "nn.AdaptiveAvgPool3d((2, 3, 1))",
        "F.adaptive_avg_pool3d(x, 3)",
        "nn.MaxPool3d(3, 2, 1)",
        "F.max_pool3d(x, 2)",
        "torch.max_pool3d(x, 2, 1)",
        "nn.AdaptiveMaxPool3d(3)",
        "F.adaptive_max_pool3d(x, (2, 3, 2))",
    )
)

NORMALISATIONS = (
    _spelled(
        IMAGE,
        "nn.BatchNorm2d(4)",
        "nn.BatchNorm2d(4, affine=False, eps=0.5)",
        "nn.SyncBatchNorm(4)",
        "F.batch_norm(x, W(4), W(4).abs(), W(4).flip(0), W(4))",
        "F.batch_norm(x, W(4), W(4).abs())",
    )
    | _spelled(MATRIX, "nn.BatchNorm1d(4)")
    | _spelled(VECTOR, "nn.BatchNorm1d(6)")
    | _spelled((2, 3, 3, 3), "nn.BatchNorm3d(2)")
)

RESAMPLINGS = (
    _spelled(
        ODD,
        "F.pad(x, (1, 2))",
        "F.pad(x, (1, 2, 0, 1, 1, 0), value=0.5)",
        "F.pad(x, (-1, 2, 3, -2))",
        "F.pad(x, (2, 1, 1, 1), mode='reflect')",
        "F.pad(x, (2, 1, 1, 1), 'replicate')",
        "F.pad(x, (2, 1, 1, 1), mode='circular')",
        "nn.ZeroPad2d((1, 2, 3, 4))",
        "nn.ConstantPad2d(2, 3.5)",
        "nn.ReflectionPad2d((1, 2, 3, 4))",
        "nn.ReplicationPad2d(2)",
        "nn.CircularPad2d((1, 2, 0, 1))",
        "nn.Upsample(scale_factor=2)",
        "nn.Upsample((9, 11), mode='nearest')",
        "nn.Upsample((10, 4), mode='nearest-exact')",
        "nn.Upsample(scale_factor=(2, 3), mode='bilinear')",
        "nn.Upsample((9, 8), mode='bilinear', align_corners=True)",
        "nn.UpsamplingNearest2d(scale_factor=2)",
        "nn.UpsamplingBilinear2d((3, 9))",
        "F.interpolate(x, scale_factor=1.5, mode='bilinear')",
        "F.interpolate(x, scale_factor=1.5, mode='bilinear', recompute_scale_factor=True)",
        "F.interpolate(x, scale_factor=0.3)",
        "F.interpolate(x, size=(3, 3), mode='bilinear', align_corners=False)",
        "F.interpolate(x, size=x.shape[2:], mode='bilinear')",
        "F.interpolate(x, size=4, mode='area')",
    )
    | _spelled(
        MATRIX,
        "nn.ZeroPad1d(2)",
        "nn.ConstantPad1d((1, 2), -1.0)",
        "nn.ReflectionPad1d(3)",
        "nn.ReplicationPad1d((3, 1))",
        "nn.CircularPad1d(2)",
        "F.interpolate(x, scale_factor=2, mode='linear')",
        "nn.Upsample(1, mode='linear', align_corners=True)",
    )
    | _spelled(
        (1, 3, 4, 3),
        "nn.ZeroPad3d(1)",
        "nn.ConstantPad3d(1, 2.0)",
        "nn.ReflectionPad3d(1)",
        "nn.ReplicationPad3d(1)",
        "nn.CircularPad3d(1)",
        "nn.Upsample(scale_factor=2, mode='trilinear')",
        "F.interpolate(x, size=(5, 3, 6), mode='trilinear', align_corners=True)",
    )
)

ACTIVATIONS = _spelled(
    MATRIX,
    *(
        f"nn.{name}()"
        for name in "ReLU ReLU6 LeakyReLU RReLU PReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign".split()
    ),
    *(
        f"nn.{name}()"
        for name in "Tanh Tanhshrink Hardtanh Hardsigmoid Hardswish Sigmoid LogSigmoid Softshrink".split()
    ),
    *("nn.ReLU(inplace=True)", "nn.LeakyReLU(-0.5)", "nn.LeakyReLU(1.5)", "nn.RReLU(0.2, 0.4)", "nn.PReLU(4)"),
    *("nn.ELU(alpha=2.0)", "nn.ELU(alpha=-0.5)", "nn.CELU(0.3)", "nn.GELU(approximate='tanh')", "nn.Softplus(2.0, 30)"),
    *("nn.Hardtanh(-0.5, 3)", "nn.Softshrink(0.0)", "nn.Threshold(0.5, 0.5)", "nn.Threshold(-1, -1)"),
    *(f"F.{name}(x)" for name in "relu relu6 leaky_relu rrelu elu selu celu gelu silu mish softplus softsign".split()),
    *(
        f"F.{name}(x)"
        for name in "tanh tanhshrink hardtanh hardsigmoid hardswish sigmoid logsigmoid softshrink".split()
    ),
    *(
        "F.relu(x * 1, inplace=True)",
        "F.relu(x * 1, True)",
        "F.leaky_relu(x, 0.3)",
        "F.prelu(x, W(4))",
        "F.elu(x, 0.5)",
    ),
    *("F.gelu(x, approximate='tanh')", "F.softplus(x, beta=3)", "F.threshold(x, 0.25, 0.25)", "F.hardtanh(x, -2, 0.5)"),
    *(
        f"torch.{name}(x)"
        for name in "relu relu_ selu selu_ tanh tanh_ sigmoid sigmoid_ abs absolute abs_ celu".split()
    ),
    *(f"torch.{name}(x)" for name in "sin sin_ cos cos_ atan arctan atan_ asinh arcsinh erf rrelu".split()),
    *("torch.special.expit(x)", "torch.special.erf(x)", "torch.prelu(x, W(1))", "torch.threshold(x, 1, 1)"),
    *(f"x.{name}()" for name in "relu relu_ tanh tanh_ sigmoid sigmoid_ abs abs_ absolute sin sin_ cos cos_".split()),
    *(f"x.{name}()" for name in "atan atan_ arctan asinh arcsinh erf erf_".split()),
    *("abs(x)", "x.prelu(W(4))", "torch.threshold_(x, 1, 1)"),
    *("torch.clamp(x, -1, 1)", "torch.clip(x, min=0)", "torch.clamp_(x, max=2)", "x.clamp(-1, 2)", "x.clamp_(0, 1)"),
    *("x.clip(-1)", "x.clip_(-1, 1)", "torch.clamp_min(x, 0)", "torch.clamp_min_(x, 0)", "x.clamp_min(-1)"),
    *("x.clamp_min_(1)", "torch.clamp_max(x, 0)", "torch.clamp_max_(x, 0)", "x.clamp_max(1)", "x.clamp_max_(1)"),
    *("torch.clamp(x, W(6), W(4, 6).abs())",),
)

NONLINEAR = _spelled(
    MATRIX,
    "nn.Softmax(dim=1)",
    "nn.Softmax(-1)",
    "nn.Softmin(dim=2)",
    "F.softmax(x, dim=2)",
    "torch.softmax(x, 1)",
    "x.softmax(-1)",
    "torch.logsumexp(x, 1)",
    "torch.special.logsumexp(x, dim=(1, 2))",
    "x.logsumexp(dim=2, keepdim=True)",
    "torch.linalg.vector_norm(x, dim=1)",
    "torch.linalg.vector_norm(x, 2, (1, 2), True)",
    "torch.norm(x, dim=2)",
    "x.norm(p=2, dim=1, keepdim=True)",
    "L.MaxMin()",
    "L.MaxMin(dim=2)",
    "L.GroupSort(2)",
    "L.GroupSort(3, dim=-1)",
    "L.FullSort()",
    "L.Householder(4)",
    "L.Householder(6, dim=2)",
) | _spelled(IMAGE, "nn.Softmax2d()")

OPS: dict[str, Operation] = (
    VIEWS
    | DROPOUTS
    | ARITHMETIC
    | LINEAR
    | CONVOLUTIONS
    | POOLS
    | NORMALISATIONS
    | RESAMPLINGS
    | ACTIVATIONS
    | NONLINEAR
)
