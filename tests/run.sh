#!/usr/bin/env bash
# Installs into .venv, then runs ruff, the type checker and all tests. Words go to pytest, e.g. `tests/run.sh -k cfpo`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/install.sh cpu
unset PYTHONDONTWRITEBYTECODE  # else every process would compile torch, vLLM and transformers anew
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0  # Ray's own 15 would leave its workers little beside the other tests
.venv/bin/ruff check --no-cache .
.venv/bin/ruff format --check .
.venv/bin/basedpyright
if [ "$#" -gt 0 ]; then
  exec .venv/bin/python -m pytest "$@"
fi
# Tests that start Ray wait for processes most of the time: the others run beside them.
log=$(mktemp)
trap 'trap - INT TERM; kill 0' INT TERM
.venv/bin/python -m pytest --durations=15 -m "ray or integration" >"$log" 2>&1 &
status=0
.venv/bin/python -m pytest --durations=15 -m "not ray and not integration" || status=$?
wait $! || status=$?
cat "$log"
rm "$log"
exit "$status"
