# SPDX-License-Identifier: LGPL-2.1-or-later
"""What puts drgn-tools into capture kernels; run as python -m contrib.NAME."""
