# The front door: `make help` lists the targets. All else is the command line, .venv/bin/small-bench.
# What is given on make's command line counts; a variable of the environment does not.
PROFILE  := $(if $(filter score,$(MAKECMDGOALS)),score,tiny)
DATA     :=
MODELS   :=
TASKS    :=
SEEDS    :=
STEPS    :=
CLUSTER  :=
MODEL    :=
PROTOCOL :=
ROWS     := 0
GPU_JOBS := 1
CORES    :=
PORT     := 8000
PYTHON   := python3

# Recipes read these from the environment, in quotes: what a user gives is text to make and to the
# shell, never a command.
OPTIONS := PROFILE DATA MODELS TASKS SEEDS STEPS CLUSTER MODEL PROTOCOL ROWS GPU_JOBS CORES PORT
$(foreach name,$(OPTIONS),$(eval override $(name) := $$(value $(name))))
export $(OPTIONS)

BIN    := .venv/bin
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n "$${CORES:-auto}" --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help book score test test-long bench serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20
	@echo 'variables: PROFILE=tiny DATA=folder MODELS="bert electra" TASKS="cola rte" SEEDS="0 1" STEPS=20000 CORES=2 GPU_JOBS=1 CLUSTER=profiles/slurm MODEL=owner/name PROTOCOL=tuned ROWS=1000 PORT=8000 PYTHON=python3'
	@echo 'everything else: $(BIN)/small-bench --help'

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python 3.11 to 3.13 is needed, this is %d.%d; use make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[study,book,dev]'
	@touch $@

book: .venv/ready ## run the study of PROFILE, build the book, print the table and the page
	@test -z "$$PROTOCOL$${ROWS#0}" || { echo "error: PROTOCOL and ROWS are of make score; in a profile they are protocol and train_rows" >&2; exit 2; }
	@$(BIN)/python -m helpers.study.cli run --profile="$$PROFILE" --data="$$DATA" --models="$$MODELS" \
	    --tasks="$$TASKS" --seeds="$$SEEDS" $${STEPS:+"--steps=$$STEPS"} \
	    $${CORES:+"--cores=$$CORES"} --gpu-jobs="$$GPU_JOBS" --cluster="$$CLUSTER"

score: .venv/ready ## fine-tune and score MODEL, an encoder on the Hub or in a folder
	@$(BIN)/python -m helpers.study.cli score --profile="$$PROFILE" --data="$$DATA" --tasks="$$TASKS" --seeds="$$SEEDS" \
	    --protocol="$$PROTOCOL" --rows="$$ROWS" $${CORES:+"--cores=$$CORES"} -- "$$MODEL"

serve: .venv/ready ## serve the built book of PROFILE on localhost
	@echo "http://localhost:$$PORT/"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory "runs/$$PROFILE/book/html" -- "$$PORT"

test: .venv/ready ## lint, then run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(PYTEST) -m "not long"

test-long: .venv/ready ## run the tests that take minutes each: Colab, a study under kills, Slurm, every type of encoder
	$(PYTEST) -m long

bench: .venv/ready ## time ours against stock transformers, side by side; DATA as for book
	$(BIN)/python scripts/bench.py --data="$$DATA"

clean: ## delete the run of PROFILE
	@case "$$PROFILE" in ''|.*|*/*|*.yaml) \
	    echo "error: PROFILE = '$$PROFILE': must be the name of a folder in runs/" >&2; exit 2;; esac
	rm -rf "runs/$$PROFILE"
