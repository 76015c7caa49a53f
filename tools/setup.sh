#!/bin/sh
# Makes .venv in the root of the checkout: `tools/setup.sh run` for what the program needs, `dev` for the tests too.
# torch comes first and alone: the CPU build unless this machine has an NVIDIA driver.  TORCH_INDEX names another
# package index to take it from, PYTHON another interpreter.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
PY=.venv/bin/python
CPU_INDEX=https://download.pytorch.org/whl/cpu

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "telepresence needs Python 3.11 or newer; name one with PYTHON=..., as in: make setup PYTHON=python3.12" >&2
  exit 1
}
[ -x .venv/bin/pip ] || "$PYTHON" -m venv --clear .venv

pip_install() {
  "$PY" -m pip install --disable-pip-version-check --no-input --quiet "$@"
}

has_driver() {
  [ -e /proc/driver/nvidia/version ] || nvidia-smi >/dev/null 2>&1
}

install_torch() {
  pin=$(grep '^torch==' requirements-torch.lock)
  if [ -n "${TORCH_INDEX:-}" ]; then
    pip_install --index-url "$TORCH_INDEX" "$pin"
  elif [ "$(uname -s)" != Linux ] || has_driver; then
    pip_install "$pin"
  else
    # --no-deps: what the CPU build depends on stands in requirements.lock.
    pip_install --no-deps "$pin+cpu" 2>/dev/null || pip_install --no-deps --index-url "$CPU_INDEX" "$pin"
  fi
}

echo "Installing torch ..."
install_torch
echo "Installing the rest ..."
pip_install --require-hashes -r requirements.lock
cuda=$("$PY" -c 'import torch; print((torch.version.cuda or "").split(".")[0])')
if [ -n "$cuda" ] && has_driver; then
  pip_install --require-hashes -r "requirements-cuda$cuda.lock"
fi
if [ "${1:-run}" = dev ]; then
  pip_install --require-hashes -r requirements-dev.lock
fi
pip_install --no-deps --no-build-isolation --editable .
