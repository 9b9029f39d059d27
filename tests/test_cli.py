"""The command line: answers, exit statuses, JSON, messages, and no half-written files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from lipcert import Certificate, Validity, cli
from lipcert.cli import app

NETS = """
import torch
from torch import nn
import lipcert

def double():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    return nn.Sequential(layer, nn.ReLU())

def dropout():
    return nn.Sequential(double(), nn.Dropout(0.5))

class Square(nn.Module):
    def forward(self, x):
        return x * x

class Mine(nn.Module):
    def forward(self, x):
        return torch.sin(x)

@lipcert.lowers(Mine)
def mine(module, x):
    return lipcert.lowering.activation(x, "declared:me", (-1.0, 1.0), torch.sin)

class Unknown(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real

def broken():
    raise ValueError("boom")

def bent():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4))

made = []

def another():
    made.append(None)
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = len(made) * torch.eye(2)
    return layer

def needs(width):
    return nn.Linear(width, 1)

instance = double()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of networks."""
    (tmp_path / "cli_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answer(result: Result) -> dict:
    """The JSON object, which is all there is on standard output."""
    lines = result.stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def certified(*options: str, target: str = "cli_nets:double") -> Result:
    return run("certify", target, "--input-shape", "2", *options)


CLAIM = {"norms", "domain", "bound", "bound_hex", "validity", "method", "network"}


GATE = """
import torch

class Gate(torch.nn.Module):
    def forward(self, x):
        return x * x

gate = Gate()
"""


def test_certify_on_a_box_and_on_a_ball_says_where_and_is_checked_there(folder: Path):
    (folder / "gates.py").write_text(GATE)
    np.save("centre.npy", np.array([1.0, 2.0]))
    for options, bound, where in (
        (("--box=-3,1",), 6.0, "on the box from -3.0 to 1.0"),
        (("--ball", "0.5", "--centre", "centre.npy"), 5.0, "on the l2 ball of radius 0.5 around numbers of shape (2,)"),
        (("--ball", "0.5"), 1.0, "on the l2 ball of radius 0.5 around 0.0"),
    ):
        proved = certified(*options, "--out", "gate.json", "--json", target="gates:gate")
        found = answer(proved)
        assert (found["verdict"], found["domain"]) == ("PROVED", where)
        assert bound <= found["bound"] <= bound * 1.00001
        for arithmetic in ((), ("--float64",)):
            accepted = answer(run("check", "gate.json", *arithmetic, "--json"))
            assert (accepted["verdict"], accepted["bound"]) == ("ACCEPTED", found["bound"])
            assert accepted["domain"]
        assert where in run("show", "gate.json").stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--box=1,-1",), "empty"),
        (("--box=1",), "LOW,HIGH"),
        (("--box=-1,1", "--ball", "1"), "not both"),
        (("--centre", "centre.npy"), "--ball"),
        (("--ball", "1", "--centre", "nothing.npy"), "holds no array"),
        (("--ball=-1",), "radius"),
        (("--box=-1,1", "--sandwich"), "whole space"),
    ],
    ids=["empty", "one end", "two domains", "no ball", "no file", "no radius", "sandwich"],
)
@pytest.mark.usefixtures("folder")
def test_domains_that_are_none_are_refused(options: tuple[str, ...], why: str):
    refused = certified(*options)
    assert refused.exit_code == 2
    assert why in refused.stderr


@pytest.mark.usefixtures("folder")
def test_certify_of_a_gate_everywhere_points_to_domains(folder: Path):
    (folder / "gates.py").write_text(GATE)
    refused = certified(target="gates:gate")
    assert refused.exit_code == 3
    assert "domain=Box" in refused.stderr


def test_certify_proves_a_bound_and_writes_two_files_that_check(folder: Path):
    proved = certified("--out", "cert.json", "--json")
    found = answer(proved)
    assert proved.exit_code == 0
    assert found.keys() == {"command", "verdict", "target", "input_shape", *CLAIM, "assumptions", "files"}
    assert (found["command"], found["verdict"], found["validity"]) == ("certify", "PROVED", "RIGOROUS")
    assert 2.0 <= found["bound"] <= 2.00000001
    assert float.fromhex(found["bound_hex"]) == found["bound"]
    assert found["files"] == ["cert.json", "cert.safetensors"]
    written = {path.name for path in folder.iterdir() if path.is_file()}
    assert written == {"cert.json", "cert.safetensors", "cli_nets.py"}

    for options, arithmetic in (((), "exact"), (("--float64",), "float64")):
        accepted = run("check", "cert.json", *options, "--json")
        assert accepted.exit_code == 0
        checked = answer(accepted)
        keys = {"command", "verdict", "certificate", "weights", "arithmetic", "reason"}
        assert checked.keys() == {*keys, "norms", "bound", "bound_hex", "assumptions"}
        assert (checked["verdict"], checked["arithmetic"]) == ("ACCEPTED", arithmetic)
        assert checked["bound"] == found["bound"]


def test_answers_for_people_begin_with_the_verdict(folder: Path):
    assert certified("--out", "cert.json").stdout.startswith("PROVED  Lip(f; l2->l2) <= 2.00001\n")
    assert run("check", "cert.json").stdout.startswith("ACCEPTED  Lip(f; l2->l2) <= 2.00001\n")
    shown = run("falsify", "cli_nets:double", "--input-shape", "2", "--budget", "0.5")
    assert shown.stdout.startswith("REFUTED  two inputs with |f(x) - f(y)| / |x - y| >= 2 ")


def test_the_method_is_the_one_asked_for_and_auto_by_default(folder: Path):
    bounds = {}
    for method in ("product", "lipsdp", "auto"):
        found = answer(certified("--method", method, "--json", target="cli_nets:bent"))
        assert method in found["method"].lower()
        bounds[method] = found["bound"]
    assert bounds["auto"] == answer(certified("--json", target="cli_nets:bent"))["bound"] == bounds["lipsdp"]
    assert bounds["lipsdp"] < bounds["product"]
    hurried = answer(certified("--seconds", "0", "--json", target="cli_nets:bent"))
    assert bounds["auto"] < hurried["bound"] <= bounds["product"]
    assert certified("--seconds", "-1", target="cli_nets:bent").exit_code == 2


def test_progress_goes_to_standard_error_if_asked_for(folder: Path):
    shown = certified("--progress", "--json", target="cli_nets:bent")
    assert answer(shown)["verdict"] == "PROVED"
    assert "bounding: iteration 1, bound " in shown.stderr
    assert ", dual bound " in shown.stderr
    assert ", gap " in shown.stderr
    for quiet in ((), ("--no-progress",)):
        assert certified(*quiet, target="cli_nets:bent").stderr == ""


def test_one_output_or_a_margin_is_bounded_as_a_network_of_its_own(folder: Path):
    whole = answer(certified("--json", target="cli_nets:bent"))
    one = answer(certified("--output", "3", "--out", "one.json", "--json", target="cli_nets:bent"))
    two = answer(certified("--margin", "3,1", "--out", "two.json", "--json", target="cli_nets:bent"))
    assert one["bound"] < whole["bound"]
    assert two["bound"] < 2**0.5 * whole["bound"]
    assert len({found["network"] for found in (whole, one, two)}) == 3
    for name in ("one.json", "two.json"):
        assert run("check", name).exit_code == 0
    for wrong in (("--output", "4"), ("--margin", "1"), ("--margin", "1,1"), ("--margin", "a,b"), ("--margin", "0,9")):
        assert certified(*wrong, target="cli_nets:bent").exit_code == 2
    assert "two questions" in certified("--output", "1", "--margin", "0,1", target="cli_nets:bent").stderr


@pytest.mark.parametrize("question", [(), ("--output", "2"), ("--margin", "0,2"), ("--method", "product")])
def test_a_sandwich_shows_both_sides_of_what_is_asked(folder: Path, question: tuple[str, ...]):
    found = answer(certified("--sandwich", *question, "--json", target="cli_nets:bent"))
    plain = answer(certified(*question, "--json", target="cli_nets:bent"))
    assert found.keys() - plain.keys() == {"witness", "pattern", "dual", "parts"}
    assert found["bound"] == plain["bound"]
    assert 0.2 * found["bound"] < found["witness"] <= found["bound"]
    if question == ("--method", "product"):
        assert (found["pattern"], found["dual"], found["parts"]) == (None, None, 0)
    else:
        assert found["witness"] <= found["pattern"] <= found["dual"] <= found["bound"]
    text = certified("--sandwich", *question, target="cli_nets:bent").stdout
    assert text.startswith("PROVED  ")
    assert ("pattern" in text) == (found["pattern"] is not None)
    assert certified("--sandwich", "--norms", "linf", target="cli_nets:bent").exit_code == 2


def test_a_sandwich_is_about_one_model_even_if_every_call_makes_another(folder: Path):
    found = answer(certified("--sandwich", "--json", target="cli_nets:another"))
    assert found["witness"] <= found["bound"] <= 1.05 * found["witness"]


def test_a_model_may_be_an_instance_a_class_or_a_function_in_training_mode(folder: Path):
    assert certified(target="cli_nets:instance").exit_code == 0
    assert certified(target="cli_nets:dropout").exit_code == 0
    assert certified(target="cli_nets:nn.ReLU").exit_code == 0


def test_the_norms_are_those_asked_for(folder: Path):
    assert answer(certified("--norms", "l1->linf", "--json"))["norms"] == "l1->linf"
    wrong = certified("--norms", "l3")
    assert wrong.exit_code == 2
    assert "cannot read the norms 'l3'" in wrong.stderr


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_state_dict(folder: Path, suffix: str):
    state = {"0.weight": torch.tensor([[8.0, 0.0], [0.0, 1.0]])}
    path = folder / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert 8.0 <= answer(certified("--state-dict", path.name, "--json"))["bound"] < 8.0000001


@pytest.fixture
def checkpoints(folder: Path) -> tuple[str, ...]:
    """Three checkpoints of one model in a folder, as options, and a folder for what is proved of them."""
    (folder / "runs").mkdir()
    (folder / "proved").mkdir()
    for scale in (2, 3, 4):
        torch.save({"0.weight": scale * torch.eye(2)}, folder / "runs" / f"step{scale}.pt")
    return tuple(text for scale in (2, 3, 4) for text in ("--state-dict", f"runs/step{scale}.pt"))


def test_several_checkpoints_are_answered_in_order_and_as_each_alone(folder: Path, checkpoints: tuple[str, ...]):
    result = certified(*checkpoints, "--out", "proved", "--json")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3
    for scale, found in zip((2, 3, 4), rows, strict=True):
        name, files = f"runs/step{scale}.pt", [f"proved/step{scale}.json", f"proved/step{scale}.safetensors"]
        alone = answer(certified("--state-dict", name, "--out", "alone.json", "--json"))
        assert found == {**alone, "state_dict": name, "files": files}
        assert Path(files[0]).read_bytes() == Path("alone.json").read_bytes()
        assert run("check", files[0]).exit_code == 0
    text = certified(*checkpoints).stdout
    assert text.count("PROVED  Lip(f; l2->l2) <= ") == 3
    assert [line.split()[1] for line in text.splitlines() if "state_dict" in line] == list(checkpoints[1::2])


def test_both_sides_are_shown_of_every_checkpoint(folder: Path, checkpoints: tuple[str, ...]):
    rows = [json.loads(line) for line in certified(*checkpoints, "--sandwich", "--json").stdout.splitlines()]
    assert all(scale - 1e-6 < row["witness"] <= row["bound"] for scale, row in zip((2, 3, 4), rows, strict=True))


def test_several_certificates_need_a_folder_in_which_nothing_is_lost(folder: Path, checkpoints: tuple[str, ...]):
    (folder / "runs" / "again").mkdir()
    save_file({"0.weight": torch.eye(2)}, folder / "runs" / "step5.safetensors")
    torch.save({"0.weight": torch.eye(2)}, folder / "runs" / "again" / "step2.pt")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for more, out, says in (
        ((), "cert.json", "is a folder that exists"),
        ((), "nowhere", "is a folder that exists"),
        (("--state-dict", "runs/again/step2.pt"), "proved", "have one name"),
        (("--state-dict", "runs/step5.safetensors"), "runs", "would overwrite ['runs/step5.safetensors']"),
        (("--state-dict", "runs/missing.pt"), "proved", "cannot read weights"),
    ):
        result = certified(*checkpoints, *more, "--out", out)
        assert result.exit_code == 2
        assert says in result.stderr
        assert result.stdout == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_one_checkpoint_that_is_not_proved_is_seen_in_the_status(
    folder: Path, checkpoints: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    def numerical(graph: object, norms: object) -> Certificate:
        found = cli.Product()(graph, norms)
        return replace(found, validity=Validity.NUMERICAL if 2.5 < found.bound < 3.5 else found.validity)

    monkeypatch.setitem(cli.CERTIFIERS, cli.Method.auto, lambda *_: numerical)
    result = certified(*checkpoints, "--json")
    assert result.exit_code == 4
    verdicts = [json.loads(line)["verdict"] for line in result.stdout.splitlines()]
    assert verdicts == ["PROVED", "UNKNOWN", "PROVED"]


def test_a_checkpoint_that_would_run_code_is_not_read(folder: Path):
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    torch.save({"model": {"0.weight": torch.eye(2)}}, folder / "nested.pt")
    torch.save({"1.weight": torch.eye(2)}, folder / "other.pt")
    (folder / "junk.safetensors").write_bytes(b"junk")
    for name, says in (
        ("module.pt", "Only tensors are read"),
        ("nested.pt", "save model.state_dict() itself"),
        ("other.pt", "does not fit the model"),
        ("junk.safetensors", "cannot read weights"),
        ("missing.pt", "cannot read weights"),
    ):
        result = certified("--state-dict", name)
        assert result.exit_code == 2
        assert says in result.stderr


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cli_nets", "write package.module:factory"),
        ("cli_nets:nothing", "Check the name after the colon"),
        ("no_such_module:double", "No module named 'no_such_module'"),
        ("cli_nets:broken", "ValueError: boom"),
        ("cli_nets:needs", "called without arguments"),
        ("cli_nets:number", "neither a torch.nn.Module nor a function"),
        ("cli_nets:dict", "was not found"),
        ("net.pt2", "there is no file"),
    ],
)
def test_a_wrong_target_says_what_and_what_now_without_a_traceback(folder: Path, target: str, says: str):
    result = certified(target=target)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("shape", ["x", "", "0,2", "-1", "2,,2", "1.5"])
def test_a_wrong_shape_is_a_usage_error(folder: Path, shape: str):
    result = run("certify", "cli_nets:double", f"--input-shape={shape}")
    assert result.exit_code == 2
    assert "is not a shape" in result.stderr


def test_a_missing_option_is_a_usage_error(folder: Path):
    assert run("certify", "cli_nets:double").exit_code == 2


@pytest.mark.parametrize(("target", "kind"), [("Square", "NotLipschitz"), ("Unknown", "UnsupportedOperation")])
def test_an_unsupported_model_is_status_3_and_json_says_why(folder: Path, target: str, kind: str):
    result = certified("--json", "--out", "cert.json", target=f"cli_nets:{target}")
    assert result.exit_code == 3
    found = answer(result)
    assert found.keys() == {"command", "verdict", "error", "message"}
    assert (found["verdict"], found["error"]) == ("ERROR", kind)
    assert kind in result.stderr
    assert not list(folder.glob("*cert*"))


def test_a_declared_slope_is_an_assumption_everywhere(folder: Path):
    found = answer(certified("--out", "cert.json", "--json", target="cli_nets:Mine"))
    assert found["assumptions"]
    for command in (("check", "cert.json"), ("check", "cert.json", "--float64"), ("show", "cert.json")):
        assert any("declared:me" in assumption for assumption in answer(run(*command, "--json"))["assumptions"])


def test_a_lowered_bound_is_rejected_with_both_numbers(folder: Path):
    certified("--out", "cert.json")
    document = json.loads(Path("cert.json").read_text())
    document["bound"] = (1.5).hex()
    Path("cert.json").write_text(json.dumps(document))
    for options in ((), ("--float64",)):
        result = run("check", "cert.json", *options, "--json")
        assert result.exit_code == 1
        found = answer(result)
        assert found["verdict"] == "REJECTED"
        assert "1.5" in found["reason"]
        assert "bound" not in found


def test_other_weights_are_rejected(folder: Path):
    certified("--out", "cert.json")
    certified("--out", "other.json", target="cli_nets:nn.ReLU")
    assert run("check", "cert.json", "other.safetensors").exit_code == 1
    assert run("show", "cert.json", "--weights", "other.safetensors").exit_code == 2


def test_files_that_are_no_certificates_are_malformed(folder: Path):
    certified("--out", "cert.json")
    Path("bad.json").write_text("{}")
    Path("bad.safetensors").write_bytes(b"")
    for arguments in (
        ("check", "bad.json", "cert.safetensors"),
        ("check", "cert.json", "bad.safetensors"),
        ("check", "cert.json", "bad.safetensors", "--float64"),
        ("check", "missing.json"),
        ("show", "bad.json"),
        ("show", "missing.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.stderr
        assert result.stderr


def test_too_large_for_exact_arithmetic_is_unknown_and_names_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    certified("--out", "cert.json")

    def too_large(*_: str) -> None:
        raise cli.TooLarge("9999 x 9999 entries")

    monkeypatch.setattr(cli, "verify_files", too_large)
    result = run("check", "cert.json")
    assert result.exit_code == 4
    assert "9999 x 9999" in result.stdout
    assert "--float64" in result.stdout


def test_falsify_refutes_a_false_claim_with_a_pair_that_does_it(folder: Path):
    arguments = ("falsify", "cli_nets:double", "--input-shape", "2", "--bound", "1.5", "--out", "pair.npz", "--json")
    result = run(*arguments)
    found = answer(result)
    assert result.exit_code == 1
    keys = {"target", "input_shape", "norms", "claimed", "ratio", "ratio_hex", "distance", "exact", "blamed", "reason"}
    assert found.keys() == {"command", "verdict", *keys, "seed", "files"}
    assert found["verdict"] == "REFUTED"
    assert found["exact"] is True
    assert found["files"] == ["pair.npz", "pair.py"]
    assert subprocess.run([sys.executable, "-I", "pair.py"], capture_output=True, check=False).returncode == 0
    with np.load("pair.npz") as pair:
        x, y = pair["x"], pair["y"]
        assert pair["ratio"] == found["ratio"]
    stretched = np.maximum(x * [2, 1], 0) - np.maximum(y * [2, 1], 0)
    assert 1.5 < found["ratio"] <= np.linalg.norm(stretched) / np.linalg.norm(x - y) <= 2.0 + 1e-12


def test_falsify_does_not_refute_a_true_claim(folder: Path):
    result = run("falsify", "cli_nets:double", "--input-shape", "2", "--bound", "2.0", "--budget", "0.5", "--json")
    assert result.exit_code == 4
    assert answer(result)["verdict"] == "UNKNOWN"
    assert answer(result)["ratio"] <= 2.0


@pytest.mark.parametrize("option", ["--bound=-1", "--bound=nan", "--budget=0", "--budget=nan"])
def test_falsify_refuses_numbers_that_mean_nothing(folder: Path, option: str):
    assert run("falsify", "cli_nets:double", "--input-shape", "2", option).exit_code == 2


def test_show_lists_the_layers_of_a_certificate_and_of_a_model(folder: Path):
    certified("--out", "cert.json", "--method", "product")
    from_file = answer(run("show", "cert.json", "--json"))
    from_model = answer(run("show", "cli_nets:double", "--input-shape", "2", "--json"))
    assert from_file == from_model
    assert from_file.keys() == {"command", "verdict", *CLAIM, "assumptions", "layers", "files"}
    assert from_file["layers"][0].keys() == {"node", "op", "shape", "gain", "cumulative", "share"}
    assert from_file["layers"][-1]["cumulative"] == from_file["bound"]
    text = run("show", "cert.json", "--plot", "layers.png")
    assert text.exit_code == 0
    assert "dense" in text.stdout
    assert Path("layers.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path):
    target = tmp_path / "pair.npz"
    target.write_text("old")

    def interrupted() -> None:
        with cli.replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["pair.npz"]
    assert target.read_text() == "old"


def test_a_folder_that_does_not_exist_is_a_usage_error(folder: Path):
    for arguments in (
        ("certify", "cli_nets:double", "--input-shape", "2", "--out", "nowhere/cert.json"),
        ("falsify", "cli_nets:double", "--input-shape", "2", "--out", "nowhere/pair.npz"),
        ("show", "cli_nets:double", "--input-shape", "2", "--plot", "nowhere/layers.png"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "nowhere" in result.stderr


def test_an_error_inside_lipcert_is_never_read_as_a_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(*_: object) -> Certificate:
        raise ZeroDivisionError("inside")

    monkeypatch.setitem(cli.CERTIFIERS, cli.Method.auto, lambda *_: wrong)
    result = certified("--json")
    assert result.exit_code == 5
    assert answer(result)["verdict"] == "ERROR"
    assert "Traceback" in result.stderr
    assert "please report" in result.stderr


def test_an_interruption_has_its_own_status(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> Certificate:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.CERTIFIERS, cli.Method.auto, lambda *_: interrupted)
    assert certified().exit_code == 130


def test_only_a_rigorous_certificate_is_called_proved(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def numerical(graph: object, norms: object) -> Certificate:
        found = cli.Product()(graph, norms)
        return Certificate(found.bound, found.norms, Validity.NUMERICAL, "other", found.network, found.evidence)

    monkeypatch.setitem(cli.CERTIFIERS, cli.Method.auto, lambda *_: numerical)
    result = certified("--json")
    assert result.exit_code == 4
    assert answer(result)["verdict"] == "UNKNOWN"


def test_the_stand_alone_checker_is_a_script_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    certified("--out", "cert.json")
    monkeypatch.setattr(sys, "argv", ["lipcert-check", "cert.json", "cert.safetensors"])
    assert cli.check_main() == 0
    assert capsys.readouterr().out.startswith("ACCEPT")
