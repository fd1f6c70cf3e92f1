# What bash completes drgn-makedumpfile with.
# SPDX-License-Identifier: LGPL-2.1-or-later

_drgn_makedumpfile() {
    COMPREPLY=()
    if [[ $2 == -* ]]; then
        # shellcheck disable=SC2207 # no option has spaces
        COMPREPLY=($(compgen -W '
            -b -c -D -d -E -F -f -h -i -L -l -p -R -v -z --check-params --cyclic-buffer
            --dry-run --dump-dmesg --help --mem-usage --message-level --non-mmap
            --num-threads --partial-dmesg --reassemble --show-stats --split
            --splitblock-size --work-dir
        ' -- "$2"))
    fi
}

complete -o default -F _drgn_makedumpfile drgn-makedumpfile
