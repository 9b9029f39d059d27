# Development commands. They need Python >= 3.11 with venv and pip, and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip's list of extra package folders, if set, is passed on to uv, which separates with commas.
UV := UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(printf '%s' "$$PIP_FIND_LINKS" | tr -s ' ' ',')}" $(BIN)/uv
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --constraints constraints.txt
# One thread per process: two test processes share two cores, timings of one do not depend on the other, and threads that
# wait for each other do not spin where a core is busy (the example took five times as long there).
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE) $(BIN)/python -m pytest
WORKERS ?= 2
LINTED := lipcert _lipcert_pytestplugin.py tests examples benchmarks docs

.PHONY: demo test test-all soundness lint types docs bench-norms bench-parametrizations bench-lipsdp bench-conv \
	bench-zoo bench-claims bench-penalties bench-exact bench-robustness bench-regions bench-audit mutants clean

demo: $(VENV)/.installed
	$(ONE) $(BIN)/python examples/quickstart.py

test: $(VENV)/.installed
	$(PYTEST) -n $(WORKERS) -q -m "not slow"

test-all: $(VENV)/.installed
	$(PYTEST) -n $(WORKERS) -q --timeout 1800

soundness: $(VENV)/.installed
	$(ONE) $(BIN)/python -m benchmarks.soundness

lint: $(VENV)/.installed
	$(BIN)/ruff check $(LINTED)

types: $(VENV)/.installed
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench-norms: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_norms

bench-parametrizations: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_parametrizations

bench-lipsdp: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_lipsdp

bench-conv: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_conv

bench-zoo: $(VENV)/.installed
	$(BIN)/python -W ignore -m benchmarks.bench_zoo

bench-claims: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_claims

bench-penalties: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_penalties

bench-exact: $(VENV)/.installed
	$(ONE) $(BIN)/python -m benchmarks.bench_exact

bench-robustness: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_robustness

bench-regions: $(VENV)/.installed
	$(ONE) $(BIN)/python -m benchmarks.bench_regions

bench-audit: $(VENV)/.installed
	$(BIN)/python -m benchmarks.bench_audit

mutants: $(VENV)/.installed
	$(ONE) $(BIN)/python -m benchmarks.mutants

clean:
	rm -rf $(VENV) build dist docs/_build docs/gallery .pytest_cache .ruff_cache .hypothesis
	find lipcert tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c "import sys; sys.exit('lipcert needs Python >= 3.11, this is %s; run make PYTHON=...' % sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) --editable ".[testing,plot,examples]" --group dev
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --group docs
	touch $@
