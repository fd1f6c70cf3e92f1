# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is fast and what is not, measured: python -m benchmarks.NAME --help."""
