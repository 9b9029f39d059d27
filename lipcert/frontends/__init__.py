"""Further ways to the same graph: exported programs and ONNX files. Floor 4.

Each reads its own format, lowers a whitelist of operations through the rules that `lipcert.trace` uses, refuses the
rest by name, and replays the graph against what it was read from.
"""

from lipcert.frontends.exported import trace_exported
from lipcert.frontends.onnx_file import trace_onnx

__all__ = ["trace_exported", "trace_onnx"]
