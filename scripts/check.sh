#!/usr/bin/env bash
# All checks, in the environment of env.sh. Every one runs, so that one look shows everything; fails if one fails.
cd "$(dirname "$0")/.." || exit 1
# Tests that start nodes, browsers or whole programs wait for them with the clock: they have the cores to themselves.
alone=(test/system test/nodes test/viewer/test_browser.py test/training test/test_demo.py test/test_launch.py)
status=0
for check in "ruff format --check ." "ruff check ." "mypy" \
  "python -m pytest -n 2 --dist loadfile ${alone[*]/#/--ignore=}" "python -m pytest ${alone[*]}"; do
  echo "== $check"
  $check || status=1
done
exit $status
