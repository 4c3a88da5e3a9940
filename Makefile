# A new machine needs Python 3.11 and make; everything else is installed into $(VENV).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Workers of the tests read what another one has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install run test fuzz test-networks test-wheel test-documents test-slow test-kills test-faults test-multinode test-browser test-labelstudio \
	test-lowest gpu-check gpu-paper reference docs pictures \
	constraints-lowest.txt lint types clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/python jobs/run.py

# With WITH=kills also the kill tests for which .ci/run has the time: they wait where the others compute.
KILLS_TOO = --timeout 900 -m 'not slow and not multinode and not labelstudio and not browser'
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(if $(WITH),$(KILLS_TOO))

# Every architecture at every pruning ratio, in less than 5 minutes.
test-networks: install
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow' tests/networks/test_architectures.py

# The wheel, built and used in an empty environment and folder.
test-wheel: install
	$(BIN)/python -m pytest -m slow --timeout 900 tests/test_wheel.py

# Every code block of the documents, carried out as it stands.
test-documents: install
	$(BIN)/python -m pytest -m slow tests/docs

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not faults' --timeout 1800

# 10,000 mutated inputs, of a seed that the last line names: `make fuzz SEED=1 CASES=1000`. A short version is in `test`.
fuzz: install
	$(BIN)/python -W ignore -m tests.fuzz $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES))

# Of the kill tests those for which .ci/run has the time.
test-kills: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --timeout 900 \
		-m 'faults and not slow and not multinode'

# KILLS=200 tries so many moments of every kind of kill.
test-faults: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --max-worker-restart 0 -m 'faults and not multinode' --timeout 1800

test-multinode: install
	$(BIN)/python -m pytest -m multinode --timeout 2400

# Chromium and its driver come from the system: apt-get install chromium chromium-driver.
test-browser: install
	$(BIN)/python -m pytest -m browser --timeout 300

# Label Studio brings a Django of its own, so it has an environment of its own.
test-labelstudio: install
	test -x .venv-labelstudio/bin/pip || $(PYTHON) -m venv --clear .venv-labelstudio
	.venv-labelstudio/bin/python -m pip install --quiet 'label-studio==1.23.2'
	$(BIN)/python -m pytest -m labelstudio --timeout 900

# The diagrams and the screenshot of the documents: apt-get install graphviz chromium.
pictures: install
	$(BIN)/python -m tests.support.pictures

# What a GPU does for scoring and training: one table, one line of JSON, less than five minutes.
gpu-check: install
	$(BIN)/python jobs/benchmark.py gpu

# The paper's table, a part in each call of less than eight minutes on an H100; the same call again goes on:
# make gpu-paper POOL='cifar10/train-*.parquet' TEST='cifar10/test-*.parquet'.
gpu-paper: install
	$(BIN)/python jobs/benchmark.py paper --pool '$(POOL)' --test '$(TEST)'

# The lowest versions that pyproject.toml allows, in an environment of their own (6 GB).
test-lowest:
	test -x .venv-lowest/bin/pip || $(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev,mlflow,wandb]'
	.venv-lowest/bin/python -m pytest -n 2 --dist loadfile
	.venv-lowest/bin/python -m pytest -m slow --timeout 900 tests/sweep/test_runner.py -k mlflow

# After a change of the bounds in pyproject.toml: which versions they are.
constraints-lowest.txt: install
	$(BIN)/python -m pip install --quiet uv
	echo '# The lowest versions that pyproject.toml allows: `make constraints-lowest.txt`; tested by `make test-lowest`.' > $@
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-annotate --no-header \
		--all-extras pyproject.toml >> $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

# What of the documents is generated: tables of what can be named, reference of configuration, commands and Python.
reference: install
	$(BIN)/python -m tests.support.documents

# The documents as a site, in .site; a broken link or anchor is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .site
