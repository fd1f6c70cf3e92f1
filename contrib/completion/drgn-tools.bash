# What bash completes drgn-tools with: the program itself knows.
# SPDX-License-Identifier: LGPL-2.1-or-later

_drgn_tools() {
    local IFS=$'\n' words=() cword=0 i line
    COMPREPLY=()
    # bash takes --option=value for three words.
    for i in "${!COMP_WORDS[@]}"; do
        if ((i == COMP_CWORD)); then
            cword=${#words[@]}
        elif [[ ${COMP_WORDS[i]} == = ]]; then
            continue
        fi
        words+=("${COMP_WORDS[i]}")
    done
    for line in $(COMP_WORDS="${words[*]}" COMP_CWORD=$cword \
        _DRGN_TOOLS_COMPLETE=bash_complete "$1" 2>/dev/null); do
        case $line in
        dir,*) compopt -o dirnames ;;
        file,*) compopt -o default ;;
        plain,*) COMPREPLY+=("${line#plain,}") ;;
        esac
    done
}

complete -o nosort -F _drgn_tools drgn-tools
