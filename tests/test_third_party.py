"""Networks that others trained, with the constants they published; skipped where the folder is missing."""

import pytest

from benchmarks.third_party import FOLDER, networks
from lipcert import Budget, Validity, certify, witness
from lipcert.certifiers import Product

NETS = {net.name: net for net in networks()}
# One witness width of the 2-d critics per method is enough inside the ordinary suite.
QUICK = {name: net for name, net in NETS.items() if not name.startswith("w1bench") or "width_16_" in name}

pytestmark = pytest.mark.skipif(not NETS, reason=f"no third-party networks in {FOLDER.name}")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if "averaged_cnn" in name else []) for name in QUICK] or ["none"],
)
def test_witness_and_published_constant_are_below_the_rigorous_bound(name: str):
    net = NETS[name]
    certificate = certify(net.build(), net.shape, by=Product())
    assert certificate.validity is Validity.RIGOROUS
    found = witness(net.build(), net.shape, budget=Budget(points=2, power_steps=5, ascent_steps=0))
    assert found.ratio <= certificate.bound
    assert net.exact is None or net.exact <= certificate.bound


@pytest.mark.parametrize("name", [name for name, net in QUICK.items() if "MP" in net.published] or ["none"])
def test_the_published_product_of_norms_is_reproduced(name: str):
    net = NETS[name]
    assert certify(net.build(), net.shape, by=Product()).bound == pytest.approx(net.published["MP"], rel=2e-2)
