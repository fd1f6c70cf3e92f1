#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# dracut's pre-pivot hook, in images without kdump scripts.
[ -s /proc/vmcore ] && /usr/lib/drgn-tools/save-vmcore "$NEWROOT"
