# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decode what a dead kernel leaves behind, and capture it fast."""
