"""Settings shared by all tests: profiles, one thread per process, where GPU tests run, and the soundness counter."""

import os
import zlib
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import settings

settings.register_profile("dev", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)


@pytest.fixture
def count_soundness(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """Hand a row, its cases and its violations to the counter at the end, from whatever process the test runs in."""
    return lambda row, cases, violations: record_property("soundness", [row, cases, violations])


def soundness_line(reports: Iterable[object]) -> str:
    """The soundness counter of the tests that were reported; empty if none counted anything."""
    calls = (report for report in reports if getattr(report, "when", "") == "call")
    counts = [value for report in calls for name, value in report.user_properties if name == "soundness"]  # type: ignore[attr-defined]
    if not counts:
        return ""
    from benchmarks.soundness import counter

    return counter((row, cases, violations) for row, cases, violations in counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the soundness counter."""
    if line := soundness_line(report for reports in terminalreporter.stats.values() for report in reports):
        terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most cases of what is marked `one_in` to `make test-all`; skip what needs CUDA where there is none."""
    for item in items:
        # By a checksum of its name, so that no choice of parameters is always left out.
        rare = item.get_closest_marker("one_in")
        if rare and zlib.crc32(item.nodeid.encode()) % rare.args[0]:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
