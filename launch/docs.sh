#!/usr/bin/env bash
# Builds the API reference.
set -euo pipefail

case "${1:-}" in
  -h | --help)
    cat <<'TEXT'
usage: launch/docs.sh [OUT]

Writes the API reference, made from the docstrings, to OUT (site by default) and says where
its first page is. Sets up .venv with the developer tools first.
TEXT
    exit 0
    ;;
esac

out="${1:-site}"
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$(bash launch/setup.sh --dev)"
"$bin/python" launch/api_reference.py "$out"
echo "docs: $out/index.html"
