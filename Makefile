# make quickstart [JAX=cuda13]   the main job in small, on a fresh machine
# make test                      the same, then the tests
PYTHON ?= python3
VENV ?= .venv
# cpu, cuda12, cuda13 or tpu
JAX ?= cpu
# Processes that share the files of tests
TEST_PROCESSES ?= 2

RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed-$(JAX)
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs

.PHONY: quickstart test install dev lint types notebooks docs pins clean

quickstart: $(INSTALLED)
	$(RUN) launch.py --config=configs/quickstart.py --workdir=workdirs/quickstart

test: quickstart lint
	$(RUN) -m pytest -n $(TEST_PROCESSES) --dist=loadfile

install: $(INSTALLED)

# What a contributor needs: also this checkout as a package, and the hooks that look at each commit.
dev: $(INSTALLED_DEV)
	$(RUN) -m pip install --quiet --no-deps -e .
	$(RUN) -m pre_commit install --hook-type=pre-commit --hook-type=pre-push

lint: types
	$(RUN) -m ruff check .

types: $(INSTALLED_DEV)
	$(RUN) -m mypy

# Runs them and stores what they print and draw.
notebooks: $(INSTALLED)
	$(RUN) examples/notebooks/run.py

# The site, in docs/_build/html. A warning, such as a link that leads nowhere, is an error.
docs: $(INSTALLED_DOCS)
	$(RUN) -m sphinx -W --keep-going --quiet --fresh-env --builder=html docs docs/_build/html
	$(RUN) docs/check_site.py docs/_build/html

$(INSTALLED): requirements.txt
	@case "$(JAX)" in cpu|cuda12|cuda13|tpu) ;; *) echo "JAX=$(JAX): give cpu, cuda12, cuda13 or tpu"; exit 2;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt $(if $(filter-out cpu,$(JAX)),"jax[$(JAX)]")
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(INSTALLED_DOCS): requirements-docs.txt $(INSTALLED)
	$(RUN) -m pip install --quiet -r requirements-docs.txt
	@touch $@

# Needs uv. One set of pins for all Pythons, with markers where they differ.
pins:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --upgrade pyproject.toml -o requirements.txt
	sed -i '1i # Pins for Python 3.11 and for 3.12 and newer. Made from pyproject.toml by `make pins`.' requirements.txt

clean:
	rm -rf $(VENV) .jax_cache workdirs docs/_build docs/copied
