#!/usr/bin/env bash
# A loop over overrides: every combination of values trains in a directory of its own.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/sweep.sh CONFIG --out DIR --over FIELD VALUES [--over ...] [-- OVERRIDES]
       launch/sweep.sh FAMILY --scale SCALE --out DIR [--over ...] [-- OVERRIDES]

Trains CONFIG once for every combination of the values, one after the other, each in
DIR/FIELD=VALUE,...; what is finished is skipped and what was interrupted goes on. A run
that diverges does not stop the others.

With --scale, CONFIG is a family of arms (configs/ablation) and each combination is one
`rfq compare`: all arms are trained, quantized and reported together, in DIR itself
where there is no --over.

  --over FIELD VALUES   a field of the config and its values, separated by commas
  --scale SCALE         demo (minutes an arm on two cores), small (one GPU) or paper
  --out DIR             where the runs go
  --list                print the commands, run nothing
  --help                this text

  launch/sweep.sh configs/demo/residual_adamw.py --out runs/rates \
    --over optimizer.learning-rate 1e-3,3e-3 --over seed 0,1,2 -- --train.num-steps 300
  launch/sweep.sh configs/ablation/theorem1.py --scale demo --out runs/theorem1

Without --scale it ends with the last training loss of every run. The variables of
launch/setup.sh apply.
TEXT
}

fail() {
  echo "launch/sweep.sh: $*" >&2
  exit 2
}

config="" out="" list="" scale=""
runs=("") # Each a list of "FIELD=VALUE", joined by commas.
while [ $# -gt 0 ]; do
  case "$1" in
    --out)
      [ -n "${2:-}" ] || fail "--out needs a directory"
      out="$2"
      shift 2
      ;;
    --over)
      [ -n "${2:-}" ] && [ -n "${3:-}" ] || fail "--over needs a field and its values"
      IFS=, read -r -a values <<<"$3"
      more=()
      for run in "${runs[@]}"; do
        for value in "${values[@]}"; do
          more+=("$run${run:+,}$2=$value")
        done
      done
      runs=("${more[@]}")
      shift 3
      ;;
    --scale)
      [ -n "${2:-}" ] || fail "--scale needs demo, small or paper"
      scale="$2"
      shift 2
      ;;
    --list)
      list=1
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
    -*) fail "unknown argument $1; see launch/sweep.sh --help" ;;
    *)
      [ -z "$config" ] || fail "one config, not $config and $1"
      config="$1"
      shift
      ;;
  esac
done
[ -n "$config" ] && [ -n "$out" ] || fail "a CONFIG and --out DIR are needed"
[ -n "${runs[0]}$scale" ] || fail "nothing to sweep; give --over FIELD VALUES"

[ -n "$list" ] || bin="$(bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh")"
worst=0
for run in "${runs[@]}"; do
  IFS=, read -r -a pairs <<<"$run"
  if [ -n "$scale" ]; then
    words=(compare "$config" --scale "$scale" --out "$out${run:+/$run}")
  else
    words=(train "$config" --out "$out/$run")
  fi
  for pair in "${pairs[@]}"; do
    words+=("--${pair%%=*}" "${pair#*=}")
  done
  words+=("$@")
  echo "rfq ${words[*]}"
  [ -z "$list" ] || continue
  status=0
  "$bin/rfq" "${words[@]}" || status=$?
  case "$status" in
    0) ;;
    1) worst=1 ;;
    *) exit "$status" ;;
  esac
done
[ -z "$list$scale" ] || exit "$worst"
for run in "${runs[@]}"; do
  if [ -f "$out/$run/done.json" ]; then
    loss="$(sed 's/.*"loss": \([^,}]*\).*/\1/' "$out/$run/done.json")"
  else
    loss=diverged
  fi
  printf '%-10.10s %s\n' "$loss" "$run"
done
exit "$worst"
