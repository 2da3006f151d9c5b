# One virtual environment, .venv, made on first use. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-quick test-full bench-data bench-train bench-kernels bench-launch bench-distill bench-grpo bench-many bench-merge bench-gpu bench-gpu-long bench-serve bench-generate bench-rounding bench-prune bench-plan bench-runs bench-texts bench-fuzz bench-faults bench-tasks docs check format clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed  ## fine-tune a real 135M LLaMA, merge it, and compare before and after
	$(BIN)/finetune quickstart

# Two workers, each with one thread; one that is done takes tests from the other.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Drawn inputs: the same ones on every run of a commit here, new ones in test-full, which is where to look for more.
test: $(VENV)/.installed-dev  ## the test suite, 10 to 16 minutes on 2 cores
	$(PYTEST) --hypothesis-profile=ci -m "not long"

# What most changes break first: recipes, data, who imports whom. None of them loads torch, which is seen to; those
# that wait for processes, or for what explodes, take long.
test-quick: $(VENV)/.installed-dev  ## the tests that need no torch, in a minute
	$(PYTEST) -p tests.support.torch_free --hypothesis-profile=quick -m "not long and not torch" \
		$(addprefix --ignore=tests/unit/data_prep/test_,cache_processes.py sandbox.py near_duplicates.py) \
		tests/unit/recipe tests/unit/data_prep tests/unit/test_imports.py tests/unit/test_signals.py tests/unit/cli/test_cli_check.py

test-full: $(VENV)/.installed-dev  ## the test suite and the long tests
	$(PYTEST) --hypothesis-profile=new

bench-data: $(VENV)/.installed-dev  ## rows/s beside TRL where PEERS names its environments, the cache, a million rows
	$(BIN)/python benchmarks/bench_data.py --million $(if $(PEERS),--trl $(PEERS)/trl)

bench-train: $(VENV)/.installed-dev  ## tokens/s, memory, losses beside a plain peft loop, and the peers where PEERS names their environments
	$(BIN)/python benchmarks/bench_train.py $(if $(PEERS),--peers $(PEERS))

bench-kernels: $(VENV)/.installed-dev  ## kernels a step of LLaMA-3.1-8B launches on a GPU, counted without one, beside transformers and peft
	$(BIN)/python benchmarks/bench_kernels.py

bench-many: $(VENV)/.installed-dev  ## adapters that train together beside the same ones one after the other
	$(BIN)/python benchmarks/bench_many.py

bench-distill: $(VENV)/.installed-dev  ## what a teacher adds to the same rows, with intervals; beside TRL's loss where TRL names the folder
	$(BIN)/python benchmarks/bench_distill.py $(if $(TRL),--trl $(TRL))

bench-grpo: $(VENV)/.installed-dev  ## what rewards bring to a supervised start, with intervals; losses and wall time beside TRL's where TRL names the folder
	$(BIN)/python benchmarks/bench_grpo.py $(if $(TRL),--trl $(TRL))
	$(if $(TRL),$(BIN)/python benchmarks/bench_grpo_time.py --trl $(TRL))

bench-launch: $(VENV)/.installed-dev  ## one process beside two, for each engine
	$(BIN)/python benchmarks/bench_launch.py

bench-merge: $(VENV)/.installed-dev  ## merging beside cp and PEFT, at 1.1B and 8B shapes (50 GB of disk)
	$(BIN)/python benchmarks/bench_merge.py --shapes 1.1b 8b

bench-rounding: $(VENV)/.installed-dev  ## what each rounding of a merge leaves of eight adapters of SmolLM2-135M
	$(BIN)/python benchmarks/bench_rounding.py

bench-preference: $(VENV)/.installed-dev  ## pairs/s of DPO, with prompts shared and not, beside TRL where TRL names the folder of its package
	$(BIN)/python benchmarks/bench_preference.py $(if $(TRL),--trl $(TRL))

bench-gpu: $(VENV)/.installed-dev  ## one NVIDIA GPU: right numbers, tokens/s, memory, kernels, the longest row; at most 9 minutes
	$(BIN)/python -m benchmarks.gpu.bench_gpu $(if $(JSON),--json $(JSON))

bench-gpu-long: $(VENV)/.installed-dev  ## one step of the next longer row, up to 439,296 tokens; JSON names the file that keeps what was measured
	$(BIN)/python -m benchmarks.gpu.bench_long --json $(or $(JSON),bench-gpu-long.json) $(if $(BASE),--base $(BASE))

bench-serve: $(VENV)/.installed-dev  ## tokens/s of finetune serve, and of transformers serve where FASTAPI names the folder of that package
	$(BIN)/python benchmarks/bench_serve.py $(if $(FASTAPI),--fastapi $(FASTAPI))

bench-generate: $(VENV)/.installed-dev  ## tokens/s of answers, many to a prompt, beside transformers' own generate
	$(BIN)/python benchmarks/bench_generate.py

bench-prune: $(VENV)/.installed-dev  ## what pruning costs SmolLM2-135M, and what LoRA on it brings back
	$(BIN)/python benchmarks/bench_prune.py

bench-plan: $(VENV)/.installed-dev  ## what finetune plan predicts beside what torch and the system measure
	$(BIN)/python benchmarks/bench_plan.py

bench-runs: $(VENV)/.installed-dev  ## what tracking costs, and how long lists and plans take
	$(BIN)/python benchmarks/bench_runs.py

bench-texts: $(VENV)/.installed-dev  ## how long a megabyte of each nasty text takes to be scrubbed and cleaned
	$(BIN)/python benchmarks/bench_texts.py

bench-fuzz: $(VENV)/.installed-dev  ## 2,000 changed models, adapters and runs through the command line: no traceback, no hang
	$(BIN)/python benchmarks/bench_fuzz.py

bench-faults: $(VENV)/.installed-dev  ## 117 seeded faults in the phases of a run, in slices of ten minutes that go on in FAULTS
	$(BIN)/python -m benchmarks.faults $(or $(FAULTS),/tmp/finetune-faults)

bench-tasks: $(VENV)/.installed-dev  ## what minutes of training bring for each task on small real data, and how fast answers are
	$(BIN)/python benchmarks/bench_evaluate.py
	$(BIN)/python benchmarks/bench_tasks.py

docs: $(VENV)/.installed-dev  ## the pages and tables made from the code, and the manual as a site: site/index.html
	$(BIN)/finetune schema > recipes/recipe.schema.json
	$(BIN)/finetune schema --markdown > docs/recipe_reference.md
	$(BIN)/python -m finetune.manual accelerate_configs/README.md docs/*.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

check: $(VENV)/.installed-dev  ## style, types, import arrows, every recipe
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_imports.py tests/unit/recipe/test_shipped_recipes.py

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
