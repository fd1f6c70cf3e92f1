# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other tools' formats, and pictures."""
