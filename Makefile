# make lab     set up, and open the course in JupyterLab   make lab LAB_ARGS="--port=9000"
# make test    set up, and run every check                 make test PYTEST_ARGS="-k accumulation"
# make quick   unit tests and lint alone                   make quick PYTEST_ARGS="-k accumulation"
# make course  build the notebooks that are not up to date make course COURSE_ARGS=accumulation
# make bench   time ours beside its peers                  make bench BENCH="accumulation panel"
# make lint · make format · make constraints · make clean

PYTHON ?= python3
# The torch that constraints.txt pins.
TORCH ?= 2.13.0

BIN := .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --constraint constraints.txt \
	$(if $(CI),--quiet --progress-bar off)
# The build of it that fits the machine, where that can be had. TORCH_BACKEND=cpu, cu126, … asks for
# one, TORCH_BACKEND=pip for pip's own.
TORCH_FIRST = $(BIN)/python .ci/install_torch.py constraints.txt
# The learner's own copy of the chapters.
OWN := my_course
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
LINT = $(BIN)/ruff check . && $(BIN)/ruff format --check . && \
	$(BIN)/lint-imports --no-logo && $(BIN)/ty check
TWO_AT_A_TIME := -n 2 --no-loadscope-reorder
# What watches the clock runs beside nothing else, one file beside another; the browser waits a lot,
# so it runs beside all the others.
APART := browser or alone
BROWSER_LOG := artefacts/browser.log
# The notebooks run at a quick look, all of them in less time: a build runs them at full length, and no
# notebook that is out of date passes the tests.
NOTEBOOKS = --nbval-lax --nbval-current-env --nbval-cell-timeout=180 $(wildcard course)

# A thread of torch that waits for another spins for a moment, then sleeps. By default it spins so
# long that, where a browser, a server and a kernel share two cores, it keeps the one that it waits
# for from running; not spinning at all halves the speed.
export GOMP_SPINCOUNT := 30000

.PHONY: lab test quick course bench lint format constraints clean

lab: .venv/installed
	$(BIN)/python -m accel_lab copy $(OWN)
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir="$(CURDIR)/$(OWN)" \
		--LabApp.default_url="/lab/tree/00_start_here.ipynb" $(LAB_ARGS)

# Runs all whatever fails, and fails if one did. Every test is in just one of the three runs, so that
# none can get lost between them; two may be empty (pytest's 5), and where PYTEST_ARGS chooses tests,
# so may the third.
test: .venv/installed-test
	@sh .ci/system-packages || true
	@failed=0; mkdir -p $(dir $(BROWSER_LOG)); \
	{ $(LINT); } || failed=1; \
	$(BIN)/pytest -m "alone" $(TWO_AT_A_TIME) $(PYTEST_ARGS) tests || test $$? -eq 5 || failed=1; \
	$(BIN)/pytest -m "browser" $(PYTEST_ARGS) tests > $(BROWSER_LOG) 2>&1 & browser=$$!; \
	trap 'kill $$browser; exit 1' INT TERM; \
	ACCEL_LAB_QUICK=1 $(BIN)/pytest -m "not ($(APART))" $(TWO_AT_A_TIME) $(NOTEBOOKS) \
		$(PYTEST_ARGS) tests \
		|| test $$? -eq $(if $(PYTEST_ARGS),5,0) || failed=1; \
	wait $$browser || test $$? -eq 5 || failed=1; \
	cat $(BROWSER_LOG); \
	exit $$failed

quick: .venv/installed-test
	@$(LINT)
	@$(BIN)/pytest -q -m "not ($(APART) or slow)" $(TWO_AT_A_TIME) \
		--ignore=tests/notebooks $(PYTEST_ARGS) tests

course: .venv/installed-test
	$(BIN)/python course/build.py $(COURSE_ARGS)

bench: .venv/installed-test
	$(BIN)/python -m benchmarks $(BENCH)

lint: .venv/installed-test
	$(LINT)

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest versions that go together, torch as above. What is written is "torch==X", without the
# local part of the build that happened to be installed here: CPU and CUDA builds both satisfy it.
constraints: .venv/installed-test
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	echo "torch==$(TORCH)" > .venv/torch.txt
	CUSTOM_COMPILE_COMMAND="make constraints" $(BIN)/pip-compile --quiet --upgrade \
		--all-extras --strip-extras --allow-unsafe \
		--no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint .venv/torch.txt --output-file constraints.txt pyproject.toml
	sed -i.bak -e 's/^\(torch==[0-9.]*\)+.*/\1/' constraints.txt && rm constraints.txt.bak

clean:
	rm -rf .venv build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis artefacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment: made once, brought up to date when pyproject.toml or constraints.txt change ----

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit( \
		f"accel_lab needs Python 3.11 or later, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# What the course runs on. JupyterLab's news pop-up would lie over the page, so it is off in this environment.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@$(TORCH_FIRST)
	$(PIP_INSTALL) --editable .
	$(BIN)/jupyter labextension disable --log-level=ERROR @jupyterlab/apputils-extension:announcements
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	@$(TORCH_FIRST)
	$(PIP_INSTALL) --editable ".[test,bench]"
	@touch $@
