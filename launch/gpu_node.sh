#!/usr/bin/env bash
# One process on this machine that uses its GPUs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gpu_node.sh [--gpus LIST] [--restarts N] -- COMMAND OF rfq ...

Runs a command of rfq on the GPUs of this machine, and refuses to fall back on its CPU.

  --gpus LIST    which GPUs, such as 0,1; default: all
  --restarts N   start again, at most N times, when it was killed or told to end; rfq
                 goes on from its last checkpoint; default: 0
  --help         this text

  launch/gpu_node.sh -- train configs/small/residual_free.py --out runs/mine

The variables of launch/setup.sh apply; jax needs its plug-in: rfq[cuda] or a PYTHON
that has it. Exit status as launch/local.sh.
TEXT
}

fail() {
  echo "launch/gpu_node.sh: $*" >&2
  exit 2
}

restarts=0
while [ $# -gt 0 ]; do
  case "$1" in
    --gpus)
      [[ "${2:-}" =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus needs a list such as 0,1"
      export CUDA_VISIBLE_DEVICES="$2"
      shift 2
      ;;
    --restarts)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || fail "--restarts needs a number"
      restarts="$2"
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1; see launch/gpu_node.sh --help" ;;
  esac
done
[ $# -gt 0 ] || fail "nothing to run; give a command of rfq after --"

bin="$(bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh")"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
ending=0
trap 'ending=1; kill -TERM "$child" 2>/dev/null || true' TERM INT

for ((attempt = 0; ; attempt++)); do
  "$bin/rfq" "$@" &
  child=$!
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  case "$status" in
    0 | 1 | 2 | 130) exit "$status" ;;
  esac
  [ "$ending" = 0 ] && [ "$attempt" -lt "$restarts" ] || exit "$status"
  echo "launch/gpu_node.sh: status $status; starting again" \
    "($((attempt + 1)) of $restarts)" >&2
done
