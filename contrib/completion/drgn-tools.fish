# What fish completes drgn-tools with: the program itself knows.
# SPDX-License-Identifier: LGPL-2.1-or-later

function __drgn_tools_complete
    set -l option (string match -r '^--[^=]+=' -- (commandline -ct))
    for line in (env _DRGN_TOOLS_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) \
            COMP_CWORD=(commandline -ct) drgn-tools 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                set parts (__fish_complete_directories $parts[2])
            case file
                set parts (__fish_complete_path $parts[2])
            case '*'
                set -e parts[1]
        end
        for part in $parts
            echo "$option$part"
        end
    end
end

complete -c drgn-tools -f -a '(__drgn_tools_complete)'
