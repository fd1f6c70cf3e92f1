#!/bin/sh
# All set-up, then every check and test, those in virtual machines included. Arguments
# go to pytest.
set -eu
cd "$(dirname "$0")"
. contrib/setup.sh

set_up test
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/mypy
# What the tests share is made first: that takes long, and here it shows its progress.
for what in fetch build peers dumps pstore zram ftrace oprofile; do
    .venv/bin/python -m tests.vm "$what"
done
# Neighbours share what was read of a dump: the second process takes from the far end.
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
