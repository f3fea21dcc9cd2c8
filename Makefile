# make demo: the whole pipeline on simulated tissue.  make test: the tests.
# Each creates the environment $(VENV) when it is not there yet; a second run installs nothing.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2
SPHINX_ARGS ?=
RENDERED ?= tutorials/real_data

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet

.PHONY: demo test lint docs tutorials bench clean install install-test install-dev install-doc

demo: install
	$(BIN)/sphistex demo --out demo-output

# One thread per worker: two workers already fill two cores. numba, which scanpy computes with, would otherwise set the
# threads of PyTorch back to all cores.
test: install-test
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install-test install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A look at the speed at small sizes; only a gross loss of speed against the published loop fails.
bench: install
	$(BIN)/python benchmarks/speed.py --spots-per-side 12 --d 128 --epochs 2 --image 1024 --at-least 3

# Runs the tutorials that simulate their data; SPHINX_ARGS="-D nb_execution_mode=off" leaves them out, and their
# pictures. Pages of functions that are gone would be left over.
docs: install-doc
	rm -rf docs/generated
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html $(SPHINX_ARGS) docs docs/_build/html

# Runs the tutorials on real data, from SPHISTEX_DATA; what they show is kept in the repository.
tutorials: install-doc
	$(BIN)/python tutorials/render.py --out $(RENDERED)

clean:
	rm -rf $(VENV) demo-output docs/_build docs/generated

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev
install-doc: $(VENV)/.installed-doc

# The stamps are written last: an installation that was cut short is done again. pip knows --group from 25.1 on.
$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV): some minutes, and about 7 GB with PyTorch's GPU libraries ..."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --group $*
	touch $@
