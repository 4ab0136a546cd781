#!/usr/bin/env bash
# Install what the tests need into .venv and run the default suite; further arguments go to pytest.
# Examples: scripts/test.sh -k layouts      scripts/test.sh -m real_data
#           IFT_TEST_PROCESSES=0 scripts/test.sh -m slow      the whole quickstart, twice, in about ten minutes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/install.sh" test
cd "$here/.."
# Two processes of one thread each: tiny models gain nothing from more threads, and sums stay reproducible.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec .venv/bin/python -m pytest -n "${IFT_TEST_PROCESSES:-2}" -m "not slow and not gpu and not real_data" "$@"
