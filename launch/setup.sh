#!/usr/bin/env bash
# Makes the virtual environment that every other script of this folder uses.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/setup.sh [--dev]

Makes .venv with rfq and all it needs, unless that is up to date, and prints where its
programs are. The old environment stays until the new one is finished.

  --dev    also what launch/test.sh needs (pytest, ruff, basedpyright, import-linter)
  --help   this text

environment variables
  PYTHON             interpreter to use; default: the one that the environment has, else
                     the first Python 3.11 or newer of python3, python3.14, ..., python
  RFQ_VENV           where the environment goes; default: .venv in the repository
  RFQ_SYSTEM_PYTHON  1: use the packages that PYTHON has, and install none; 0: install
                     them; default: as the environment was made, else 0

It needs the module ensurepip (Debian and Ubuntu: apt install python3-venv) and a package
index or, offline, a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER. A jax with
an accelerator plug-in (CUDA, ROCm, TPU) that PYTHON or the environment has already is
used as it is; only what is missing beside it is installed.
TEXT
}

fail() {
  echo "launch/setup.sh: $*" >&2
  exit 1
}

case "$#,${1:-}" in
  0, | 1,--dev) ;;
  1,-h | 1,--help)
    usage
    exit 0
    ;;
  *) fail "unknown arguments $*; it takes --dev and --help" ;;
esac

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${RFQ_VENV:-.venv}"
[ "${venv:0:1}" = / ] || venv="$here/../$venv"
pythons=("$venv/bin/python" python3 python3.14 python3.13 python3.12 python3.11 python)
[ -z "${PYTHON:-}" ] || pythons=("$PYTHON")
tried=""
for python in "${pythons[@]}"; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    exec "$python" "$here/environment.py" "$@"
  fi
  tried="$tried${tried:+, }$python ($("$python" --version 2>/dev/null || echo not found))"
done
fail "none of these is a Python 3.11 or newer: $tried;" \
  "install one, or name it: PYTHON=/path/to/python3.12 launch/setup.sh"
