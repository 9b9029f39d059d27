"""Pictures for a page, as bytes of PNG files. Floor 5; matplotlib is imported where it draws."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import InvalidInput
from lipcert.pages.document import visible
from lipcert.pages.spectra import Spectrum

CHANNELS = 16
"""Channels of an image that are shown side by side."""

BINS = 30


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, which is not imported before.

    Raises:
        InvalidInput: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "a page with pictures needs matplotlib, which is not installed; install lipcert[plot], or write "
            "--markdown, which has the same numbers in tables."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def histograms(spectra: Sequence[Spectrum], columns: int = 3) -> bytes:
    """One small histogram of singular values for each layer; each on its own scale."""
    rows = math.ceil(len(spectra) / columns)
    figure = new_figure(3.2 * columns, 0.3 + 2.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, spectrum in zip(grid, spectra, strict=False):
        values = spectrum.values
        low, high = float(values.min()), float(values.max())
        room = max(0.05 * (high - low), 1e-3 * high, 1e-12)
        counts, edges = torch.histogram(values, BINS, range=(max(0.0, low - room), high + room))
        axes.stairs(counts.numpy(), edges.numpy(), fill=True, color="#4c72b0")
        axes.axvline(high, color="#c44e52", linewidth=1.0)
        axes.set_title(_plain(f"{spectrum.node}: {len(values)} values, largest {high:.4g}"), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(spectra) :]:
        axes.set_visible(False)
    return png(figure)


def side_by_side(x: Tensor, y: Tensor) -> bytes:
    """Two inputs and their difference: as images if the shape is ``(C, H, W)``, otherwise as curves."""
    image = x.ndim == 3 and min(x.shape[1:]) > 1
    return _images(x, y) if image else _curves(x.flatten(), y.flatten())


def png(figure: Any) -> bytes:
    """The figure as a PNG file, without the name and version of who drew it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _images(x: Tensor, y: Tensor) -> bytes:
    figure = new_figure(10.0, 3.9)
    low, high = float(torch.minimum(x, y).min()), float(torch.maximum(x, y).max())
    reach = float((x - y).abs().max())
    colour = x.shape[0] == 3
    shown = (("x", x, low, high, "gray"), ("y", y, low, high, "gray"), ("x - y", x - y, -reach, reach, "RdBu"))
    for axes, (name, values, least, most, colours) in zip(figure.subplots(1, 3), shown, strict=True):
        if colour:
            axes.imshow(((values - least) / max(most - least, 1e-300)).clamp(0, 1).permute(1, 2, 0).numpy())
        else:
            drawn = axes.imshow(_mosaic(values).numpy(), vmin=least, vmax=most, cmap=colours)
            figure.colorbar(drawn, ax=axes, shrink=0.75).ax.tick_params(labelsize=7)
        axes.set_title(f"{name}   from {float(values.min()):.3g} to {float(values.max()):.3g}", fontsize=9)
        axes.set_axis_off()
    return png(figure)


def _mosaic(values: Tensor) -> Tensor:
    """The first channels in rows and columns, with a line of NaN, which is drawn as nothing, between them."""
    kept = torch.nn.functional.pad(values[:CHANNELS], (0, 1, 0, 1), value=math.nan)
    wide = math.ceil(math.sqrt(len(kept)))
    tall = math.ceil(len(kept) / wide)
    rest = kept.new_full((wide * tall - len(kept), *kept.shape[1:]), math.nan)
    tiles = torch.cat([kept, rest]).reshape(tall, wide, *kept.shape[1:])
    return tiles.permute(0, 2, 1, 3).reshape(tall * kept.shape[1], wide * kept.shape[2])[:-1, :-1]


def _curves(x: Tensor, y: Tensor) -> bytes:
    figure = new_figure(10.0, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(x) <= 64 else {}
    upper.plot(x.numpy(), label="x", linewidth=1.0, color="#4c72b0", **few)
    upper.plot(y.numpy(), label="y", linewidth=1.0, color="#c44e52", linestyle="--", **few)
    upper.legend(fontsize=8)
    lower.plot((x - y).numpy(), linewidth=1.0, color="black", **few)
    lower.axhline(0.0, color="black", linewidth=0.5)
    lower.set_ylabel("x - y", fontsize=8)
    lower.set_xlabel("entry", fontsize=8)
    lower.xaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        axes.tick_params(labelsize=7)
        axes.grid(linewidth=0.3, alpha=0.6)
    return png(figure)


def _plain(text: str) -> str:
    """Shortened, in ASCII, which every font has; what is between two dollars would be read as mathematics."""
    short = text if len(text) <= 48 else f"...{text[-45:]}"
    return visible(short).encode("ascii", "backslashreplace").decode().replace("$", r"\$")
