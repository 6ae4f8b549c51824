#!/usr/bin/env bash
# From nothing to a study's figures: `bash examples/studies/run.sh stability_short [key=value ...]`. Installs into .venv,
# makes the quickstart's world where it is absent, does the runs that are not done yet, draws. Further words override, e.g.
# `trainer.total_steps=10` for every run or `study.parallel=1` for the study.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=${1:-}
if [ ! -f "examples/studies/$name.yaml" ] || [ "$name" = recipe ]; then
  known=$(cd examples/studies && ls ./*.yaml | sed -e 's|^\./||' -e 's|\.yaml$||' | grep -vx recipe | paste -sd ' ')
  echo "run.sh: unknown study '$name'; known: $known" >&2
  exit 2
fi
shift

bash examples/install.sh cpu
unset PYTHONDONTWRITEBYTECODE  # else every process would compile torch, vLLM and transformers anew
.venv/bin/python examples/quickstart/make_world.py
status=0
.venv/bin/cfpo study "examples/studies/$name.yaml" "$@" || status=$?
# With failed runs (1) there is still something to draw, after a mistake (2) or an interruption (130) there is not.
if [ "$status" -le 1 ]; then
  .venv/bin/cfpo plot "outputs/studies/$name"
fi
exit "$status"
