#!/usr/bin/env bash
# From nothing to a model that has learned to follow instructions: installs into .venv, then trains a tokenizer, a small
# base model and a LoRA adapter on bundled data, and scores before and after. CPU only, no download of weights or data.
# usage: scripts/quickstart.sh [--output DIR] [--shuffle-responses]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/install.sh"
cd "$here/.."
exec .venv/bin/python scripts/quickstart/run.py "$@"
