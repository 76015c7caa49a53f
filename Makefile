# make demo    learn and stream an avatar of a synthetic person; needs git, make and python3-venv alone
# make test    lint, types and every test that this machine can run
# make help    all targets

VENV := .venv
PY := $(VENV)/bin/python
INPUTS := pyproject.toml requirements-torch.lock requirements.lock tools/setup.sh
MEDIAPIPE := libegl1 libgles2 libgl1 libglib2.0-0 libxcb1
TESTS := chromium coturn g++ janus strace xvfb

.PHONY: help setup setup-dev system demo test lint format docs figures lock clean
.DEFAULT_GOAL := help

help:
	@echo "make setup    install the telepresence command into .venv"
	@echo "make demo     run it on the built-in synthetic actor: no camera, no GPU, no downloads of models"
	@echo "make test     run make lint and all tests"
	@echo "make lint     check layout, types, spelling, wording, dead code, duplicates and links of the documents"
	@echo "make format   apply the fixes that ruff can make"
	@echo "make docs     write docs/configuration.md from the code, and the documents as a web site to site/"
	@echo "make figures  measure this machine: writes docs/figures.json"
	@echo "make system   install the Debian packages that the tests need (as root)"
	@echo "make lock     pin the newest versions of all dependencies; make lock UPGRADE= pins new dependencies only"
	@echo "make clean    remove .venv and everything that was built"

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

$(VENV)/.setup: $(INPUTS)
	@tools/setup.sh run
	@touch $@

$(VENV)/.setup-dev: $(INPUTS) requirements-dev.lock
	@tools/setup.sh dev
	@touch $(VENV)/.setup $@

# A browser, an SFU (janus), a TURN relay (coturn), a compiler, a tracer, and the system libraries of mediapipe, with which
# the landmarks are compared.
# A policy-rc.d that answers 101 keeps Debian from starting janus and coturn as services: the tests start their own.
POLICY := /usr/sbin/policy-rc.d
system:
	@command -v dpkg >/dev/null || exit 0; \
	missing=; for p in $(MEDIAPIPE) $(TESTS); do dpkg-query -W -f "\$${db:Status-Status}" $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then \
	  [ -e $(POLICY) ] || { trap 'rm -f $(POLICY)' EXIT; printf '#!/bin/sh\nexit 101\n' >$(POLICY); chmod +x $(POLICY); }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	else echo "Tests that need them will be skipped: sudo apt-get install$$missing"; fi

demo: setup
	@$(VENV)/bin/telepresence run --source synthetic

# Tests that only compute take minutes and depend on no clock: they run beside the tests of calls, which mostly wait.
COMPUTING := tests/insta_runtime tests/telepresence/actor
test: setup-dev system lint
	@nice -n 10 $(PY) -m pytest $(COMPUTING) >$(VENV)/computing.log 2>&1 & computing=$$!; \
	$(PY) -m pytest $(addprefix --ignore=,$(COMPUTING)); calls=$$?; \
	wait $$computing; computed=$$?; cat $(VENV)/computing.log; \
	[ $$calls = 0 ] && [ $$computed = 0 ]

lint: setup-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/codespell
	@$(PY) tools/check_language.py
	@$(PY) -m vulture
	@$(PY) -m pylint --score=n insta_runtime telepresence
	@$(MKDOCS) --strict --site-dir $(VENV)/site

format: setup-dev
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build
docs: setup-dev
	@$(PY) tools/config_table.py
	@$(MKDOCS) --site-dir site

figures: setup-dev
	@$(PY) tools/figures.py

# `make lock UPGRADE=` resolves new dependencies alone and keeps the other pins.
UPGRADE := --upgrade
LOCK = uv pip compile --config-file tools/lock.toml --universal --fork-strategy fewest --python-version 3.11 \
  --generate-hashes --no-emit-package torch --no-header --no-annotate --quiet $(UPGRADE)
lock: setup-dev
	@$(PY) -m pip install --quiet uv
	$(PY) -m $(LOCK) pyproject.toml --extra build -c requirements-torch.lock -o requirements.lock
	$(PY) -m $(LOCK) pyproject.toml --extra build --extra docs --extra dev -c requirements-torch.lock -c requirements.lock -o requirements-dev.lock
	for n in 12 13; do echo cupy-cuda$${n}x | $(PY) -m $(LOCK) - -c requirements.lock -o requirements-cuda$$n.lock; done

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
