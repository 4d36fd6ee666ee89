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

.PHONY: quickstart test install lint pins clean

quickstart: $(INSTALLED)
	$(RUN) launch.py --config=configs/quickstart.py --workdir=workdirs/quickstart

test: quickstart $(INSTALLED_DEV)
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n $(TEST_PROCESSES) --dist=loadfile

install: $(INSTALLED)

lint: $(INSTALLED_DEV)
	$(RUN) -m ruff check .

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

# Needs uv. One set of pins for all Pythons, with markers where they differ.
pins:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --upgrade pyproject.toml -o requirements.txt
	sed -i '1i # Pins for Python 3.11 and for 3.12 and newer. Made from pyproject.toml by `make pins`.' requirements.txt

clean:
	rm -rf $(VENV) .jax_cache workdirs
