# The front door: `make help` lists the targets.
PROFILE ?= tiny
DATA    ?=
MODELS  ?=
TASKS   ?=
SEEDS   ?=
STEPS   ?=
CORPUS  ?=
REMARK  ?=
RUN     ?= runs/$(PROFILE)
MODEL   ?=
ABOUT   ?=
NAME    ?= $(MODEL)
NOTEBOOK   ?=
PARAMETERS ?=
PORT    ?= 8000
CLUSTER ?=
GPU_JOBS ?= 1
CORES   ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON  ?= python3

# Recipes read these from the environment, in quotes: what a user gives is text to make and to the
# shell, never a command.
OPTIONS := GPU_JOBS CORPUS REMARK PROFILE DATA MODELS TASKS SEEDS STEPS RUN MODEL ABOUT NAME PORT CORES CLUSTER NOTEBOOK PARAMETERS
$(foreach name,$(OPTIONS),$(if $(filter file,$(origin $(name))),,\
    $(eval override $(name) := $$(value $(name)))))
export $(OPTIONS)

BIN   := .venv/bin
STUDY  = $(BIN)/python -m helpers.study.cli
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n "$$CORES" --dist loadgroup --no-loadscope-reorder
GIVEN  = --profile="$$PROFILE" --data="$$DATA" --models="$$MODELS" --tasks="$$TASKS" --seeds="$$SEEDS" --steps="$$STEPS"

.DEFAULT_GOAL := help
.PHONY: help book run status report keep beyond site plan serve test test-long bench verify export submission \
        check-leaderboard audit-dependencies clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20
	@echo 'variables: PROFILE=tiny DATA=folder MODELS="bert electra" TASKS="cola rte" SEEDS="0 1" STEPS=20000 CORPUS="mixed prose" REMARK="A sentence." CORES=2 GPU_JOBS=1 CLUSTER=profiles/slurm PORT=8000 NOTEBOOK=03_pretrain PARAMETERS="model=deberta pretrain_steps=20" RUN=runs/paper MODEL=electra NAME=my-electra ABOUT=about.yaml'

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python 3.11 to 3.13 is needed, this is %d.%d; use make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[study,book,dev]'
	@touch $@

book: .venv/ready ## run the study of PROFILE, build the book, print the table and the page
	@$(STUDY) run $(GIVEN) --cores="$$CORES" --gpu-jobs="$$GPU_JOBS" --cluster="$$CLUSTER"

run: .venv/ready ## run one NOTEBOOK with the parameters of PROFILE and the changes in PARAMETERS
	@$(STUDY) notebook $(GIVEN) --notebook="$$NOTEBOOK" --parameters="$$PARAMETERS"

status: .venv/ready ## print what is done, running, failed, and how long the rest will take
	@$(STUDY) status $(GIVEN) --cores="$$CORES" --gpu-jobs="$$GPU_JOBS"

report: .venv/ready ## build the book from what is finished of PROFILE, marking what is missing
	@$(BIN)/python -m helpers.study.publish report $(GIVEN)

keep: .venv/ready ## copy records, logs and notebooks of the finished PROFILE to results/measured
	@$(BIN)/python -m helpers.study.publish keep $(GIVEN) --corpus="$$CORPUS" --remark="$$REMARK"

beyond: .venv/ready ## run the recipe study of PROFILE=beyond, write results/beyond.json
	@$(STUDY) run $(GIVEN) --cores="$$CORES" --gpu-jobs="$$GPU_JOBS" --cluster="$$CLUSTER"
	@$(BIN)/python -m helpers.study.publish beyond $(GIVEN)

site: .venv/ready ## build the published book from the run kept in results/measured (or RUN)
	@$(BIN)/python -m helpers.study.publish site --run="$(if $(filter file,$(origin RUN)),,$$RUN)"

plan: .venv/ready ## print the jobs of PROFILE with tokens and FLOPs, run nothing
	@$(STUDY) plan $(GIVEN)

serve: .venv/ready ## serve the built book of PROFILE on localhost
	@echo "http://localhost:$$PORT/"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory "runs/$$PROFILE/book/html" -- "$$PORT"

test: .venv/ready ## lint, then run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(PYTEST) -m "not long"

test-long: .venv/ready ## run the tests that take minutes each: Colab, a study under kills, Slurm
	$(PYTEST) -m long

bench: .venv/ready ## time ours against stock transformers, side by side; DATA as for book
	$(BIN)/python scripts/bench.py --data="$$DATA"
	$(BIN)/python scripts/bench_profile.py
	$(BIN)/python scripts/bench_curves.py --data="$$DATA"

verify: .venv/ready ## recompute every score and table of PROFILE from its records
	@$(BIN)/python scripts/verify.py $(GIVEN)

audit-dependencies: .venv/ready ## look the pinned dependencies up among known vulnerabilities
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

export: .venv/ready ## write the models of RUN (or one MODEL) as folders for the Hub
	@$(BIN)/python scripts/export.py --run="$$RUN" --model="$$MODEL"

submission: .venv/ready ## make leaderboard/NAME from the finished records of MODEL in RUN; facts in ABOUT
	@$(BIN)/python scripts/leaderboard.py submit --run="$$RUN" --model="$$MODEL" --about="$$ABOUT" --out="leaderboard/$$NAME"

check-leaderboard: .venv/ready ## check every entry of the leaderboard; with DATA, recompute its scores
	@$(BIN)/python scripts/leaderboard.py check --data="$$DATA"

clean: ## delete the run of PROFILE
	@case "$$PROFILE" in ''|.*|*/*) \
	    echo "error: PROFILE = '$$PROFILE': must be the name of a folder in runs/" >&2; exit 2;; esac
	rm -rf "runs/$$PROFILE"
