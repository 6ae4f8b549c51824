#!/usr/bin/env bash
# From nothing to a model that CFPO has taught: installs into .venv, makes a small world, trains, reports. No GPU needed.
# Further key=value words override the recipe; another run needs a directory of its own, e.g.
# `bash examples/quickstart.sh policy_loss.name=clip trainer.seed=2 trainer.run_dir=outputs/quickstart_clip`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/install.sh cpu
unset PYTHONDONTWRITEBYTECODE  # else every process would compile torch, vLLM and transformers anew
.venv/bin/python examples/quickstart/make_world.py
exec .venv/bin/cfpo train examples/quickstart/recipe.yaml "$@"
