#!/usr/bin/env bash
# The paper's experiment: its five runs and two controls, quantized, asked and reported.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/reproduce_paper.sh [--dry-run] [--data DIR] [--tokenizer FILE]
                                 [--tasks DIR] [ARGUMENTS OF rfq compare]

Trains the paper's five runs (residual with AdamW and KL-Shampoo, residual-free with
Muon, SOAP and KL-Shampoo) and the two controls that it lacks (residual with Muon and
SOAP), quantizes each over the paper's grid in both placements, scores held-out text and
the eight tasks, and ends with the path of one report. What is finished is skipped and
what was interrupted goes on, so the same command can be given again at any time.

  --dry-run         print hours, memory and disk of every arm; needs no data
  --data DIR        prepared FineWeb-Edu; default: data/fineweb_edu
  --tokenizer FILE  what prepared it; default: tokenizer.model, a LlamaTokenizer's
  --tasks DIR       the tasks' files; default: data/tasks; if there is no such directory
                    the tasks are left out, and asked when it is there the next time
  --help            this text

Other arguments go to `rfq compare`: --out (default runs/paper), --seeds 0 1 2, fields of
the configs such as --train.num-steps 1000, and with --dry-run --target h100:1x4 and
--device-flops 3e14. It takes all devices of this machine. On a cluster give the command
that it prints to launch/slurm.sh, launch/tpu_pod.sh or launch/gpu_node.sh instead.

The data are prepared once, with a network:

  bash launch/fetch_fineweb_edu.sh --out fineweb --sample 100BT --tokens 13100000000
  rfq prepare fineweb --out data/fineweb_edu --tokenizer tokenizer.model \
    --heldout-fraction 0.0005
  rfq prepare tasks --out data/tasks

The variables of launch/setup.sh (PYTHON, RFQ_VENV, RFQ_SYSTEM_PYTHON) apply.
TEXT
}

fail() {
  echo "launch/reproduce_paper.sh: $*" >&2
  exit 2
}

data=data/fineweb_edu tokenizer=tokenizer.model tasks=data/tasks dry_run=""
more=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    --data | --tokenizer | --tasks)
      [ -n "${2:-}" ] || fail "$1 needs a value; see launch/reproduce_paper.sh --help"
      case "$1" in
        --data) data="$2" ;;
        --tokenizer) tokenizer="$2" ;;
        *) tasks="$2" ;;
      esac
      shift 2
      ;;
    *)
      more+=("$1")
      shift
      ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
words=(compare)
for arm in residual_adamw residual_kl_shampoo residual_muon residual_soap \
  residual_free_kl_shampoo residual_free_soap residual_free_muon; do
  words+=("configs/paper/$arm.py")
done
if [ -n "$dry_run" ]; then
  words+=(--dry-run)
else
  [ -d "$data" ] || fail "there are no data in $data; prepare them as" \
    "launch/reproduce_paper.sh --help says, or name their directory with --data"
  words+=(--out runs/paper --data.dir "$data" --data.tokenizer "$tokenizer")
  if [ -d "$tasks" ]; then
    words+=(--tasks.names all --tasks.dir "$tasks")
  else
    echo "launch/reproduce_paper.sh: there is no $tasks, so the tasks are left out;" \
      "rfq prepare tasks --out $tasks makes it, and the same command asks them" >&2
  fi
fi
[ ${#more[@]} -eq 0 ] || words+=("${more[@]}")
bin="$(bash launch/setup.sh)"
echo "rfq ${words[*]}" >&2
exec "$bin/rfq" "${words[@]}"
