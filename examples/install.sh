#!/usr/bin/env bash
# Installs the project into .venv: `bash examples/install.sh [cpu|gpu]`. Does nothing when nothing has changed.
# Honours pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf). PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

flavour=${1:-cpu}
case "$flavour" in
  cpu | gpu) ;;
  *) echo "install: unknown flavour '$flavour'; use cpu or gpu" >&2; exit 2 ;;
esac

python=${PYTHON:-python3.11}
if ! "$python" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  echo "install: Python 3.11 is needed and '$python' is not it; install python3.11 with its venv module, or set PYTHON" >&2
  exit 2
fi

stamp=.venv/.installed
wanted="$flavour $(cat pyproject.toml examples/install.sh | sha256sum | cut -d' ' -f1) $PWD"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

# One installation at a time: a second caller waits, then finds the stamp.
exec 9>.venv.lock
flock 9
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

echo "install: $flavour flavour into .venv (a few minutes the first time)"
rm -f "$stamp"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input -qq)
"${pip[@]}" install --upgrade "pip>=25"  # the one that comes with Python 3.11 takes a minute and a half longer

if [ "$flavour" = cpu ]; then
  # The CPU build goes first: asked for by a range, pip would take the CUDA build and several GB with it.
  if ! "${pip[@]}" install --no-compile "torch==2.13.0+cpu"; then
    cat >&2 <<'MESSAGE'
install: no CPU build of torch 2.13.0 was found. It is not on the ordinary package index: set PIP_EXTRA_INDEX_URL to the
wheel index that PyTorch's own installation page names for "CPU", then run this command again.
MESSAGE
    exit 1
  fi
fi
"${pip[@]}" install --no-compile -e ".[$flavour,test]"
if [ "$flavour" = cpu ]; then
  # vLLM's CPU build names these three without a build; their CUDA builds break `import transformers` beside a CPU torch.
  "${pip[@]}" uninstall -y torchvision torchaudio torchcodec
fi
echo "$wanted" >"$stamp"
