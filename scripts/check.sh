#!/usr/bin/env bash
# All checks, in the environment of env.sh. Every one runs, so that one look shows everything; fails if one fails.
cd "$(dirname "$0")/.." || exit 1
status=0
for check in "ruff format --check ." "ruff check ." "mypy" "python -m pytest"; do
  echo "== $check"
  $check || status=1
done
exit $status
