# `make caption` and `make test` work from a clean clone with Python and make alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# As many processes as cores, or as memory allows; a process whose share is done takes some of another's.
PYTEST := $(BIN)/pytest -n auto --dist worksteal
DATA ?= data
WEIGHTS ?= weights

.DEFAULT_GOAL := help
.PHONY: help caption test test-cpus test-slow test-web test-ray lint docs parity mini train-smoke bench bench-full bench-mini clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "there is no $(PYTHON) here: install Python 3.10 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "OpenBLIP needs Python 3.10 or newer: name one, make PYTHON=python3.12, say" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing OpenBLIP into $(VENV); the first time takes minutes" >&2
	@$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the development tools into $(VENV)" >&2
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "installing what builds the documentation into $(VENV)" >&2
	@$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

caption: $(VENV)/.core ## install OpenBLIP and caption the photos in examples/
	@$(BIN)/openblip caption examples/

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## style, types and tests
	$(PYTEST)

test-slow: $(VENV)/.dev ## the tests that take minutes each
	$(PYTEST) -m 'slow and not real and not gpu and not official'

# Into an empty folder: Sphinx does not repeat the warnings of pages that it has kept from a build before.
docs: $(VENV)/.docs ## build the documentation site, build/docs/index.html; fails on a broken link or an undocumented name
	@rm -rf build/docs
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs build/docs
	@echo "open build/docs/index.html" >&2

# An environment of its own: Gradio needs an older Pillow than the one that everything else is tested with.
WEB := .venv-web

$(WEB)/.ready: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing OpenBLIP with its web page into $(WEB)" >&2
	@$(PYTHON) -m venv $(WEB)
	@{ grep -v '^pillow==' constraints.txt; echo 'pillow==12.3.0'; } > $(WEB)/constraints.txt
	@$(WEB)/bin/python -m pip --disable-pip-version-check install --quiet -c $(WEB)/constraints.txt -e '.[dev,web]'
	@touch $@

test-web: $(WEB)/.ready ## the tests of the web page, in an environment with Gradio
	$(WEB)/bin/pytest -m 'slow or not slow' $(addprefix tests/serve/test_,page.py page_browser.py full_disk.py)

# An environment of its own: Ray Serve brings another event loop and HTTP parser along, which the server would take.
RAY := .venv-ray

$(RAY)/.ready: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing OpenBLIP with Ray Serve into $(RAY)" >&2
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[dev]' 'ray[serve]'
	@touch $@

test-ray: $(RAY)/.ready ## the tests of the recipe for Ray Serve, in an environment with it
	$(RAY)/bin/pytest -p no:xdist -m 'slow or not slow' tests/serve/test_ray.py

# What CPUs without AVX-512, and without AVX2, have: of PyTorch's own kernels, oneDNN's, FBGEMM's and MKL's.
AVX2 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 \
	MKL_ENABLE_INSTRUCTIONS=SSE4_2

# What computes, and what compares whole models: the rest reads files and options, which every CPU does alike.
NUMERICAL := tests/nn tests/generation tests/matching tests/test_mini.py $(addprefix tests/models/test_,blip.py blip2.py \
	clip.py) $(addprefix tests/checkpoints/,lavis/test_blip.py tools/test_quantize.py transformers/test_blip.py \
	test_open_clip.py test_transformers_t5.py)

test-cpus: $(VENV)/.dev ## the numerical tests again, as on CPUs with fewer instructions (x86 only)
	$(AVX2) $(PYTEST) $(NUMERICAL)
	$(SSE41) $(PYTEST) tests/nn tests/test_mini.py

parity: $(VENV)/.dev ## measure the table of docs/parity.md anew; fails when a limit is exceeded
	$(BIN)/python -m benchmarks.parity

mini: $(VENV)/.dev ## train the bundled model anew: make mini DATA=folder WEIGHTS=folder
	@PATH="$(abspath $(BIN)):$$PATH" bash recipes/mini/train.sh "$(DATA)" "$(WEIGHTS)"

train-smoke: $(VENV)/.dev ## both stages and adapters on ten photos, in minutes: losses fall, captions change
	$(BIN)/python benchmarks/train_smoke.py

bench: $(VENV)/.dev ## benchmarks at small sizes, in minutes: tables, figures and a plot in runs/bench/small
	$(BIN)/python benchmarks/run.py small

bench-full: $(VENV)/.dev ## benchmarks at real size: an hour on a quiet machine, 24 GB of memory, 22 GB of disk
	$(BIN)/python benchmarks/run.py full

bench-mini: $(VENV)/.dev ## quality of the bundled model: make bench-mini DATA=folder
	$(BIN)/python benchmarks/mini_quality.py --data $(DATA)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(WEB) $(RAY) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
