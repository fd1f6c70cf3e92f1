# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dump file formats, reader and writer side by side in one file each."""
