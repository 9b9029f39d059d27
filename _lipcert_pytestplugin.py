"""The pytest plugin of lipcert: a marker for models with a claim, options, and a line in the summary.

It stands outside the package because importing anything inside it imports torch; pytest loads plugins at every start,
so this file imports nothing but pytest, and lipcert where the first marked test runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = {"dev": 1.0, "ci": 5.0, "nightly": 60.0}
_KEY = "lipcert"
_WORDS = ("proved", "refuted", "unknown")
_REQUIREMENTS = ("proof", "no-counterexample")
_MARKER = (
    "lipschitz(bound, input_shape, norms='l2', domain=..., require='proof', seconds=..., model=...): check the claim "
    "of the model that a fixture gives or the test returns. `model` names the argument, where several are modules."
)


@dataclass(frozen=True)
class Claim:
    """What a marker says.

    Attributes:
        bound: The claimed constant.
        input_shape: Shape of one sample, without the batch dimension.
        norms: Norms as text (``"l2"``, ``"l1->linf"``) or as `lipcert.Norms`.
        domain: Where the inputs come from; ``None`` is the whole space.
        require: ``"proof"``, or ``"no-counterexample"`` to let a claim that nobody proved pass.
        seconds: How long to try; ``None`` is what the profile says.
        model: The argument of the test that is the model; ``None`` is the only one that is a module.
    """

    bound: float
    input_shape: tuple[int, ...]
    norms: Any = "l2"
    domain: Any = None
    require: str = "proof"
    seconds: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Refuse requirements that do not exist: a typing mistake must not weaken a test."""
        if self.require not in _REQUIREMENTS:
            raise TypeError(f"require={self.require!r} is not one of {', '.join(_REQUIREMENTS)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("lipcert", "Lipschitz claims")
    group.addoption(
        "--lipcert-profile",
        choices=sorted(SECONDS),
        help="How hard to try: seconds for each claim, and the settings profile of hypothesis where it is installed.",
    )
    group.addoption("--lipcert-seed", type=int, help="Seed of the search for counterexamples.")
    group.addoption(
        "--lipcert-save-dir",
        type=Path,
        help="Folder for the certificate of every claim proved and the counterexample of every claim refuted.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; load the profile if one is asked for."""
    config.addinivalue_line("markers", _MARKER)
    profile = config.getoption("--lipcert-profile")
    if profile and importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        from lipcert.testing.profiles import register_profiles

        register_profiles()
        settings.load_profile(f"lipcert-{profile}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Check the model that a marked test is given before its body, and the one that it returns after it."""
    __tracebackhide__ = True
    claims = _claims(pyfuncitem)
    if not claims:
        return (yield)
    given = [(claim, _given(pyfuncitem, claim)) for claim in claims]
    checked = 0
    for claim, model in given:
        if model is not None:
            checked += 1
            _check(pyfuncitem, claim, model, checked)
    returned = yield from _called(pyfuncitem)
    if isinstance(returned, _module_type()) and not any(model is returned for _, model in given):
        for claim in claims:
            checked += 1
            _check(pyfuncitem, claim, returned, checked)
    elif not checked:
        pytest.fail(
            f"{pyfuncitem.nodeid} is marked lipschitz, but takes no torch module and returned {returned!r}: nothing "
            f"was checked. Take a fixture that gives the model, or return it.",
            pytrace=False,
        )
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the verdicts of all reports, those of other processes included."""
    reports = [report for name, kind in terminalreporter.stats.items() if name != "rerun" for report in kind]
    calls = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    verdicts = Counter(word for report in calls for key, word in report.user_properties if key == _KEY)
    if verdicts:
        terminalreporter.write_line("lipcert: " + ", ".join(f"{verdicts[word]} {word}" for word in _WORDS))


def _claims(item: pytest.Function) -> list[Claim]:
    claims = []
    for marker in item.iter_markers("lipschitz"):
        try:
            claims.append(Claim(*marker.args, **marker.kwargs))
        except TypeError as error:
            pytest.fail(f"cannot read the marker of {item.nodeid}: {error}; write {_MARKER}", pytrace=False)
    return claims


def _module_type() -> Any:
    """`torch.nn.Module`, or nothing if nobody has imported torch: then no value is one."""
    torch = sys.modules.get("torch")
    return () if torch is None else torch.nn.Module


def _given(item: pytest.Function, claim: Claim) -> Any:
    """The argument that is the model, or none."""
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames if name in item.funcargs}
    modules = {name: value for name, value in arguments.items() if isinstance(value, _module_type())}
    if claim.model is not None:
        if claim.model not in modules:
            pytest.fail(
                f"{item.nodeid} is marked lipschitz with model={claim.model!r}, which is no argument that is a torch "
                f"module; those are {sorted(modules)}.",
                pytrace=False,
            )
        return modules[claim.model]
    if len(modules) > 1:
        pytest.fail(
            f"{item.nodeid} is marked lipschitz and takes several modules, {sorted(modules)}; say which one is claimed "
            f"about with model=....",
            pytrace=False,
        )
    return next(iter(modules.values()), None)


def _called(item: pytest.Function) -> Any:
    """Have pytest call the function, and keep from it what the function returns, which it would warn about."""
    __tracebackhide__ = True
    function = item.obj
    returned = []

    def keep(**arguments: Any) -> None:
        __tracebackhide__ = True
        value = function(**arguments)
        if isinstance(value, _module_type()):
            returned.append(value)
            return None
        return value

    item.obj = keep
    try:
        yield
    finally:
        item.obj = function
    return returned[0] if returned else None


def _check(item: pytest.Function, claim: Claim, model: Any, number: int) -> None:
    """Record the verdict with the test, save its evidence, and fail if it is not what the claim requires."""
    __tracebackhide__ = True
    from lipcert.errors import LipschitzViolation, Unproved
    from lipcert.falsify import Proved, Refuted

    verdict = _verdict(item.config, claim, model)
    item.user_properties.append((_KEY, type(verdict).__name__.lower()))
    folder = item.config.getoption("--lipcert-save-dir")
    if folder is not None:
        _save(folder, _file_name(item.nodeid, number), verdict)
    if isinstance(verdict, Refuted):
        raise LipschitzViolation(str(verdict))
    if not isinstance(verdict, Proved) and claim.require == "proof":
        raise Unproved(
            f"{verdict}\n  The marker of {item.nodeid} requires a proof. Give it more seconds=..., a larger bound, or "
            f"require='no-counterexample'."
        )


def _verdict(config: pytest.Config, claim: Claim, model: Any) -> Any:
    import torch

    from lipcert.domain import WholeSpace
    from lipcert.falsify import Effort, lipcheck

    seed = config.getoption("--lipcert-seed")
    seconds = SECONDS[config.getoption("--lipcert-profile") or "ci"] if claim.seconds is None else claim.seconds
    return lipcheck(
        model,
        claim.input_shape,
        claim.bound,
        norms=_norms(claim),
        domain=WholeSpace() if claim.domain is None else claim.domain,
        effort=Effort(seconds=seconds),
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )


def _norms(claim: Claim) -> Any:
    from lipcert.norms import Norms

    return Norms.parse(claim.norms) if isinstance(claim.norms, str) else claim.norms


def _file_name(nodeid: str, number: int) -> str:
    """The name of a test as that of a file, different for different tests."""
    name = re.sub(r"[^\w.\[\]=-]+", "-", nodeid.replace(".py::", "::"))
    if name != nodeid.replace(".py::", "-").replace("::", "-").replace("/", "-") or len(name) > 150:
        name = f"{name[:150]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"
    return name if number == 1 else f"{name}-{number}"


def _save(folder: Path, name: str, verdict: Any) -> None:
    """Write what a verdict rests on: a certificate with its network, or the pair with a script that replays it."""
    from lipcert.errors import LipcertError
    from lipcert.falsify import Proved, Refuted
    from lipcert.falsify.replay import replay_source
    from lipcert.storage import save_certificate

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(verdict, Proved):
        save_certificate(verdict.certificate, verdict.graph, folder / f"{name}.json")
    if isinstance(verdict, Refuted):
        claim, pair = verdict.claim, verdict.witness
        numbers = {"ratio": pair.ratio, "x": pair.x.tolist(), "y": pair.y.tolist()}
        document = {"bound": claim.bound, "norms": str(claim.norms), "domain": str(claim.domain), **numbers}
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        try:
            source = replay_source(verdict)
        except LipcertError:  # a network that has no form as a short script; the pair is saved
            return
        (folder / f"{name}.py").write_text(source)
