#!/usr/bin/env bash
# Make .venv with the tested set of versions; does nothing where it is up to date.
# usage: scripts/install.sh [test]     with `test`, what the test suite needs as well
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: ift needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 2
}

extra=${1:-}
stamp=".venv/ift-installed-$(cat setup.cfg constraints.txt pyproject.toml | cksum | cut -d' ' -f1)"
if [ -f "$stamp$extra" ] || [ -f "${stamp}test" ]; then exit 0; fi

echo "Installing into .venv (a few minutes; torch is the largest part) ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extra:+[$extra]}"
touch "$stamp$extra"
