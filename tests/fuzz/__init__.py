# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile input for everything that reads: see docs/fuzzing.md."""
