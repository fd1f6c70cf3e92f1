#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# dracut's module "drgn-tools": the folder that python -m contrib.install has made, and
# the commands on PATH. Plain files, which need no writable place.

_home=/usr/lib/drgn-tools

check() {
    # shellcheck disable=SC2154
    [[ -x $dracutsysrootdir$_home/drgn-tools ]] || return 1
    _drgn_tools_is_the_collector && return 0
    # In other images only when asked for.
    return 255
}

# Whether this is a kdump image that runs us.
_drgn_tools_is_the_collector() {
    # mkdumprd of Fedora and RHEL says that it is one.
    [[ $IN_KDUMP ]] && grep -qsE '^[[:space:]]*core_collector[[:space:]]+([^[:space:]]*/)?drgn-' \
        "$dracutsysrootdir/etc/kdump.conf" && return 0
    # SUSE's kdump has the name of makedumpfile in its scripts.
    _drgn_tools_for_suse
}

_drgn_tools_for_suse() {
    # shellcheck disable=SC2154
    [[ " $dracutmodules $add_dracutmodules $force_add_dracutmodules " == *" kdump "* ]]
}

depends() {
    echo base
}

install() {
    # Not with dracut's own functions, which would bring libraries a second time.
    # shellcheck disable=SC2154
    mkdir -p "$initdir$_home"
    cp -r --preserve=mode "$dracutsysrootdir$_home/." "$initdir$_home"
    inst_multiple sh
    inst_multiple -o /usr/bin/drgn-tools /usr/bin/drgn-makedumpfile
    if _drgn_tools_for_suse; then
        inst_script "$_home/kdump-tools/makedumpfile" /usr/bin/makedumpfile
    elif ! dracut_module_included kdumpbase; then
        # Nobody else is there to run it.
        inst_multiple date mkdir mount mv sleep sync
        inst_multiple -o halt poweroff reboot
        inst_simple /etc/kdump.conf
        # shellcheck disable=SC2154
        inst_hook pre-pivot 50 "$moddir/save-vmcore.sh"
    fi
    # Whatever the log level: this is what the memory goes to.
    cat "$dracutsysrootdir$_home/sizes" >&2
}
