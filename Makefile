# make demo    watch an avatar being learned and streamed; needs git, make and python3-venv alone
# make test    lint, types and every test that this machine can run
# make help    the rest

VENV := .venv
PY := $(VENV)/bin/python
INPUTS := pyproject.toml requirements-torch.lock requirements.lock tools/setup.sh
REAL_FACES := libegl1 libgles2 libgl1 libglib2.0-0 libxcb1
TESTS := chromium g++ xvfb

.PHONY: help setup setup-dev system demo test lint format docs figures lock clean
.DEFAULT_GOAL := help

help:
	@echo "make setup    .venv with the telepresence command"
	@echo "make demo     start it on the built-in synthetic actor: no camera, no GPU, no downloads of models"
	@echo "make test     lint, types, tests"
	@echo "make lint     ruff and mypy alone; make format mends what can be mended"
	@echo "make docs     write docs/configuration.md from the code"
	@echo "make figures  measure every figure that this machine can, into docs/figures.json"
	@echo "make lock     resolve the dependencies anew"
	@echo "make clean    remove .venv and what was built"

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

$(VENV)/.setup: $(INPUTS)
	@tools/setup.sh run
	@touch $@

$(VENV)/.setup-dev: $(INPUTS) requirements-dev.lock
	@tools/setup.sh dev
	@touch $(VENV)/.setup $@

# System libraries for real faces and for the browser tests.
system:
	@command -v dpkg >/dev/null || exit 0; \
	missing=; for p in $(REAL_FACES) $(TESTS); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	else echo "Tests that need them will be skipped: sudo apt-get install$$missing"; fi

demo: setup
	@$(VENV)/bin/telepresence run --source synthetic

# What only computes takes minutes, and no clock looks at it: it runs beside the tests of calls, which mostly wait.
COMPUTING := $(addprefix tests/,actor avatar field head kernels learn render torso warp)
test: setup-dev system lint
	@nice -n 10 $(PY) -m pytest $(COMPUTING) >$(VENV)/computing.log 2>&1 & computing=$$!; \
	$(PY) -m pytest $(addprefix --ignore=,$(COMPUTING)); calls=$$?; \
	wait $$computing; found=$$?; cat $(VENV)/computing.log; \
	exit $$(( calls + found ))

lint: setup-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: setup-dev
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: setup
	@$(PY) tools/config_table.py

figures: setup-dev
	@$(PY) tools/figures.py

LOCK := uv pip compile --config-file tools/lock.toml --universal --fork-strategy fewest --python-version 3.11 \
  --generate-hashes --no-emit-package torch --no-header --no-annotate --quiet --upgrade
lock: setup-dev
	@$(PY) -m pip install --quiet uv
	$(PY) -m $(LOCK) pyproject.toml --extra build -c requirements-torch.lock -o requirements.lock
	$(PY) -m $(LOCK) pyproject.toml --extra build --extra dev -c requirements-torch.lock -c requirements.lock -o requirements-dev.lock
	for n in 12 13; do echo cupy-cuda$${n}x | $(PY) -m $(LOCK) - -c requirements.lock -o requirements-cuda$$n.lock; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
