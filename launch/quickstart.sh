#!/usr/bin/env bash
# The main job: four arms train on real text, are quantized and land in one report.
set -euo pipefail

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  cat <<'TEXT'
usage: launch/quickstart.sh [ARGUMENTS OF rfq compare]

Sets up .venv, prepares the embedded corpus in data/embedded, then trains, quantizes
and compares the four arms of configs/demo in runs/demo. What is finished is skipped
and what was interrupted goes on, so it can be stopped and started at will.

It ends with the path of the report. Arguments go to `rfq compare`, for example
--train.num-steps 100 or --out runs/other; `.venv/bin/rfq compare --help` lists them.
The variables of launch/setup.sh (PYTHON, RFQ_VENV, RFQ_SYSTEM_PYTHON) apply.
TEXT
  exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$(bash launch/setup.sh)"
"$bin/rfq" prepare embedded --out data/embedded
exec "$bin/rfq" compare configs/demo/*.py --out runs/demo "$@"
