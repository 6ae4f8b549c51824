#!/usr/bin/env bash
# Installs into .venv, then runs ruff, the type checker and all tests, in two processes. Further words go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/install.sh cpu
unset PYTHONDONTWRITEBYTECODE  # else every process would compile torch, vLLM and transformers anew
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
.venv/bin/ruff check --no-cache .
.venv/bin/ruff format --check .
.venv/bin/basedpyright
exec .venv/bin/python -m pytest -n 2 --dist loadgroup --durations=15 "$@"
