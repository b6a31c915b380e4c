# Two commands on a bare machine: `make demo` and `make test`. Each makes .venv and installs what is missing.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: the tests run in two processes, and sums over threads would differ between machines.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test soak lint docs bench proofs lock wheel clean

demo: .venv/core
	$(BIN)/medform demo -o demo

test: .venv/dev
	$(PYTEST) -n 2 --dist worksteal -m "not soak" $(PYTEST_FLAGS)

soak: .venv/dev
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tools/soak.py tests/soak --timeout 5400

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright
	$(BIN)/pyright -p pyright-strict.json
	$(BIN)/deptry src
	$(BIN)/typos
	$(BIN)/python tools/proofs.py --check

docs: .venv/dev
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

bench: .venv/dev
	for name in benchmarks/*.py; do $(BIN)/python $$name --json || exit 1; done

proofs: .venv/dev
	$(BIN)/python tools/proofs.py

# The lock is what this machine's pip resolved: every version, no index address.
lock: .venv/dev
	$(BIN)/python tools/lock.py

wheel: .venv/dev
	rm -rf build dist && $(BIN)/pip wheel -q --no-deps -w dist .

.venv/core: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	$(BIN)/python -c "import medform.inputs.augment_kernel, medform.models.scan_kernel"
	touch $@

.venv/dev: .venv/core requirements-dev.lock
	$(BIN)/python -m pip install -q -r requirements-dev.lock
	touch $@

clean:
	rm -rf .venv build dist demo docs/_build
