# A new machine needs Python 3.11 and make; everything else is installed into $(VENV).
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed


install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/python jobs/run.py

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Every architecture at every pruning ratio, in less than 5 minutes.
test-networks: install
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow' tests/networks/test_architectures.py

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 1800

test-faults: install
	$(BIN)/python -m pytest -m 'faults and not multinode' --timeout 1800

test-multinode: install
	$(BIN)/python -m pytest -m multinode --timeout 2400

# Label Studio brings a Django of its own, so it has an environment of its own.
test-labelstudio: install
	test -x .venv-labelstudio/bin/python || $(PYTHON) -m venv .venv-labelstudio
	.venv-labelstudio/bin/python -m pip install --quiet 'label-studio==1.23.2'
	$(BIN)/python -m pytest -m labelstudio --timeout 900

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
