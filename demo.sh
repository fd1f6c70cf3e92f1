#!/bin/sh
# All set-up, then the main job on real input: a Debian kernel is booted and crashed in
# QEMU, its memory goes through `drgn-tools extract`, and drgn opens the result.
set -eu
cd "$(dirname "$0")"
. contrib/setup.sh

set_up demo
exec .venv/bin/python -m tests.vm demo "$@"
