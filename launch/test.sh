#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lint, types, imports, tests.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/test.sh [--all] [-- ARGUMENTS OF pytest]

Sets up .venv with the developer tools, then runs ruff, basedpyright, import-linter and
pytest. All stages run even when one fails; the exit status is 1 if any did.

  --all    the tests marked slow too
  --help   this text

  launch/test.sh -- tests/quant -x      one folder, stop at the first failure
  launch/test.sh -- -n 0 --pdb          in one process, to debug

Test files run in up to 4 processes, one for each core.
TEXT
}

# A file stays in one process, so that what its tests share is made once.
parallel=(-n auto --maxprocesses 4 --dist loadfile)
tests=(-m "not slow" --timeout 300)
while [ $# -gt 0 ]; do
  case "$1" in
    --all) tests=(--timeout 1200) ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *)
      echo "launch/test.sh: unknown argument $1; it takes --all, --help and, after --," \
        "arguments of pytest" >&2
      exit 2
      ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$(bash launch/setup.sh --dev)"
export PATH="$bin:$PATH"

summary=""
status=0

# stage NAME MODULE COMMAND...: runs and times it; a borrowed Python (RFQ_SYSTEM_PYTHON)
# may lack a linter, which is said, not hidden.
stage() {
  local name="$1" module="$2" result="ok" start=$SECONDS
  shift 2
  echo "--- $name"
  if [ "${RFQ_SYSTEM_PYTHON:-0}" = 1 ] &&
    ! python -c "import $module" 2>/dev/null; then
    result="skipped: $module is not installed"
  elif ! "$@"; then
    result="FAILED"
    status=1
  fi
  summary="$summary$(printf '%-8s %5d s  %s' "$name" $((SECONDS - start)) "$result")"$'\n'
}

stage format ruff ruff format --check .
stage lint ruff ruff check .
stage types basedpyright basedpyright --pythonpath "$bin/python"
stage imports importlinter lint-imports --no-cache --no-logo
stage tests pytest python -m pytest "${parallel[@]}" "${tests[@]}" "$@"

printf '\n%s' "$summary"
exit "$status"
