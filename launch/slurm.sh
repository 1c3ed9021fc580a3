#!/usr/bin/env bash
#SBATCH --job-name=rfq
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
# A batch job of one process per GPU: goes on by itself after time limits and preemption.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: sbatch [OPTIONS OF sbatch] launch/slurm.sh COMMAND OF rfq ...

Submit from the repository's root, after launch/setup.sh has made .venv there. Starts
one process per task with srun; rfq learns from SLURM which of how many each is. Ask for
one task per GPU, and let every task see all GPUs of its node (no --gpus-per-task):

  sbatch --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --time=8:00:00 \
    launch/slurm.sh train configs/paper/residual_free_kl_shampoo.py --out runs/kl

Two minutes before the time limit, and when it is preempted, rfq saves, ends with status
75, and the job is put back into the queue, from where the same command goes on. A node
that fails has the same effect. A job that was cancelled, failed or diverged stays out.

In an array, the word {task} of any argument becomes the index of the task:

  sbatch --array=0-2 --ntasks=1 --gres=gpu:1 \
    launch/slurm.sh train CONFIG --seed {task} --out runs/mine/seed-{task}

environment variables
  RFQ_VENV          where the environment is; default: .venv
  RFQ_MAX_REQUEUES  how often a job goes back by itself; default: 100
TEXT
}

case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  "")
    echo "launch/slurm.sh: nothing to run; see launch/slurm.sh --help" >&2
    exit 2
    ;;
esac
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "launch/slurm.sh: this is no SLURM job; submit it with sbatch" >&2
  exit 2
fi
# SLURM runs a copy of this file, which lies elsewhere.
cd "${SLURM_SUBMIT_DIR:-.}"
rfq="${RFQ_VENV:-.venv}/bin/rfq"
if [ ! -x "$rfq" ]; then
  echo "launch/slurm.sh: $PWD has no $rfq; run launch/setup.sh there" \
    "and submit from there" >&2
  exit 2
fi

words=()
for word in "$@"; do
  words+=("${word//\{task\}/${SLURM_ARRAY_TASK_ID:-0}}")
done

# The signal goes to the steps, which save; this shell waits for them.
trap ':' USR1 TERM
status=0
srun --kill-on-bad-exit=1 "$rfq" "${words[@]}" &
while :; do
  status=0
  wait $! || status=$?
  kill -0 $! 2>/dev/null || break
done

# srun gives the highest status of all tasks: 75 of rfq, 128 + n by signal n.
case "$status" in
  0 | 1 | 2 | 130) exit "$status" ;;
esac
count="${SLURM_RESTART_COUNT:-0}"
if scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=CANCELLED'; then
  echo "launch/slurm.sh: cancelled; what is saved stays" >&2
elif [ "$count" -ge "${RFQ_MAX_REQUEUES:-100}" ]; then
  echo "launch/slurm.sh: status $status, and requeued $count times already" >&2
else
  echo "launch/slurm.sh: status $status; back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
