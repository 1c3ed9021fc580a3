#!/usr/bin/env bash
# One job of several processes on this machine, each with virtual CPU devices.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local.sh -n PROCESSES [-d DEVICES] [--restarts N] -- COMMAND OF rfq ...

Starts PROCESSES processes of rfq that train together over gloo, each with DEVICES
virtual CPU devices, for tests and for trying things out. Every line of output begins
with the number of its process.

  -n PROCESSES   how many processes
  -d DEVICES     virtual devices of each; default: 1
  --restarts N   start all again, at most N times, when one was killed or told to end;
                 rfq goes on from its last checkpoint; default: 0
  --help         this text

When one process ends badly the others are given RFQ_LOST_SECONDS (10) and a moment to
say so, and are then killed. SIGTERM and Ctrl-C go to all processes, which save and end.
It exits with 0 (done), 1 (diverged or failed), 2 (bad input), 75 (the same command goes
on) or 130 (interrupted). The variables of launch/setup.sh apply.

  launch/local.sh -n 2 -d 4 -- train configs/demo/residual_adamw.py --out runs/mine
TEXT
}

fail() {
  echo "launch/local.sh: $*" >&2
  exit 2
}

processes="" devices=1 restarts=0
while [ $# -gt 0 ]; do
  case "$1" in
    -n | -d | --restarts)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || fail "$1 needs a number; see launch/local.sh --help"
      case "$1" in
        -n) processes="$2" ;;
        -d) devices="$2" ;;
        *) restarts="$2" ;;
      esac
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
    *) fail "unknown argument $1; see launch/local.sh --help" ;;
  esac
done
[ -n "$processes" ] && [ "$processes" -ge 1 ] || fail "-n PROCESSES is missing"
[ "$devices" -ge 1 ] || fail "-d DEVICES must be 1 or more"
[ $# -gt 0 ] || fail "nothing to run; give a command of rfq after --"

bin="$(bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh")"
export RFQ_LOST_SECONDS="${RFQ_LOST_SECONDS:-10}"
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
ending=0

# Signals every process that still runs.
signal_all() {
  local index
  for index in "${!pids[@]}"; do
    kill "-$1" "${pids[$index]}" 2>/dev/null || true
  done
}

trap 'signal_all KILL' EXIT
# A shell's background processes ignore SIGINT, so both become SIGTERM.
trap 'ending=1; signal_all TERM' TERM INT

prefix() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

free_port() {
  "$bin/python" -c 'import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])'
}

start_all() {
  local index
  pids=()
  if [ "$processes" -gt 1 ]; then
    RFQ_COORDINATOR="127.0.0.1:$(free_port)"
    export RFQ_COORDINATOR RFQ_NUM_PROCESSES="$processes"
  fi
  for ((index = 0; index < processes; index++)); do
    [ "$processes" -eq 1 ] || export RFQ_PROCESS_ID="$index"
    "$bin/rfq" "$@" > >(prefix "$index") 2>&1 &
    pids[index]=$!
  done
}

# The status that decides: what nothing can mend first, then what a new start can.
worse() {
  local status
  for status in 2 1 130; do
    if [ "$1" = "$status" ] || [ "$2" = "$status" ]; then
      echo "$status"
      return
    fi
  done
  [ "$1$2" = 00 ] && echo 0 || echo 75
}

# Waits for all; sets `worst`, says who ended badly first, and ends the others in time.
wait_for_all() {
  local index status how deadline=0
  worst=0
  while [ ${#pids[@]} -gt 0 ]; do
    sleep 0.2
    for index in "${!pids[@]}"; do
      kill -0 "${pids[$index]}" 2>/dev/null && continue
      status=0
      wait "${pids[$index]}" || status=$?
      unset "pids[$index]"
      worst="$(worse "$worst" "$status")"
      if [ "$status" -ne 0 ] && [ "$deadline" -eq 0 ]; then
        deadline=$((SECONDS + RFQ_LOST_SECONDS + 10))
        how="ended with status $status"
        [ "$status" -le 128 ] || how="was ended by signal $((status - 128))"
        echo "launch/local.sh: process $index of $processes on $(hostname) $how" >&2
      fi
    done
    if [ "$deadline" -gt 0 ] && [ "$SECONDS" -ge "$deadline" ]; then
      signal_all KILL
    fi
  done
}

worst=0
for ((attempt = 0; ; attempt++)); do
  start_all "$@"
  wait_for_all
  if [ "$worst" -ne 75 ] || [ "$ending" = 1 ] || [ "$attempt" -ge "$restarts" ]; then
    exit "$worst"
  fi
  echo "launch/local.sh: starting again ($((attempt + 1)) of $restarts)" >&2
done
