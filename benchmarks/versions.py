"""What a table of a benchmark was measured with."""

from __future__ import annotations

from importlib import metadata


def versions(*names: str) -> str:
    """The packages' versions, or that they are not installed."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)
