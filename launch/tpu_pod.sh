#!/usr/bin/env bash
# The same command on every host of a Cloud TPU slice.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh --name TPU --zone ZONE [--dir DIR] [--project PROJECT]
                         [--dry-run] -- COMMAND OF rfq ...

Runs a command of rfq on all hosts of a TPU VM slice, over gcloud's ssh, one process a
host; jax learns from the machines which of how many each is. DIR is the repository on
every host, made ready there by `PYTHON=... launch/setup.sh` and the extra rfq[tpu];
--out must be a directory that all hosts share.

  --name TPU, --zone ZONE, --project PROJECT   the slice, as gcloud names it
  --dir DIR                                    default: rfq, in the home directory
  --dry-run                                    print the command of gcloud, run nothing
  --help                                       this text

  launch/tpu_pod.sh --name v5e-64 --zone us-east5-b -- \
    train configs/paper/residual_free_kl_shampoo.py --out /shared/runs/kl

When a host is preempted, rfq saves and ends with status 75; the same command goes on.
TEXT
}

fail() {
  echo "launch/tpu_pod.sh: $*" >&2
  exit 2
}

name="" zone="" dir=rfq dry=""
project=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name | --zone | --dir | --project)
      [ -n "${2:-}" ] || fail "$1 needs a value"
      case "$1" in
        --name) name="$2" ;;
        --zone) zone="$2" ;;
        --dir) dir="$2" ;;
        *) project=(--project "$2") ;;
      esac
      shift 2
      ;;
    --dry-run)
      dry=1
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1; see launch/tpu_pod.sh --help" ;;
  esac
done
[ -n "$name" ] && [ -n "$zone" ] || fail "--name and --zone are needed"
[ $# -gt 0 ] || fail "nothing to run; give a command of rfq after --"

printf -v words ' %q' "$@"
printf -v place '%q' "$dir"
remote="cd $place && RFQ_LAUNCHER=cloud_tpu JAX_PLATFORMS=tpu .venv/bin/rfq$words"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone"
  ${project[@]+"${project[@]}"} --worker all --command "$remote")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
