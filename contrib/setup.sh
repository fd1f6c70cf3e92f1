# shellcheck shell=sh
# The set-up that demo.sh and test.sh share. Sourced from the top of the checkout, then:
#
#     set_up demo     # or: set_up test
#
# which leaves .venv ready, or exits with one line that says what is wrong. What is
# already there is not done again, and then neither the network nor root is needed.
#
# Written for any POSIX shell, so that it can still say "unsupported system" where there
# is no bash. Everything fetched goes into $cache; the machine's own Python and its apt
# sources stay as they are.

python=/usr/bin/python3 # Debian's, so that PATH does not decide which one is tested

# The packages from Debian, by what needs them.
packages_venv="python3 python3-venv python3-dev gcc libc6-dev liblzo2-dev ca-certificates"
packages_guest="qemu-system-x86 busybox-static kmod e2fsprogs debian-archive-keyring"
packages_shells="bash zsh fish mandoc man-db jq"
packages_kernel_build="make binutils flex bison bc libelf-dev libssl-dev xz-utils"
# Its release has no configure script; without the libraries it reads no compressed page.
packages_libkdumpfile="autoconf automake libtool pkg-config zlib1g-dev libsnappy-dev libzstd-dev"
packages_page="chromium poppler-utils"

# Room that a filled cache takes, and that a run needs besides, in MiB.
cache_demo=2600 cache_test=13600
work_demo=1300 work_test=4300

set_up() {
    case $1 in
    demo)
        packages="$packages_venv $packages_guest"
        room_cache=$cache_demo room_work=$work_demo
        ;;
    test)
        packages="$packages_venv $packages_guest $packages_shells $packages_kernel_build
            $packages_libkdumpfile $packages_page"
        room_cache=$cache_test room_work=$work_test
        ;;
    esac
    # depmod and modprobe are there, and not on an ordinary user's PATH.
    PATH=$PATH:/usr/sbin:/sbin
    unset PYTHONHOME PYTHONPATH
    trap stop_ticker EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    check_system
    open_cache
    check_room
    install_packages
    fill_wheelhouse
    fill_venv

    exec 9>&- # the lock of open_cache
    trap - EXIT INT TERM
}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "drgn-tools: $*"
    exit 1
}

# step WHAT LOG COMMAND...: run COMMAND, its output in LOG, and show that it moves: on a
# terminal one changing line, elsewhere a line now and then.
step() {
    say "$1"
    log=$2
    shift 2
    : >"$log"
    tick &
    ticker=$!
    step_status=0
    "$@" >>"$log" 2>&1 </dev/null 9>&- || step_status=$?
    stop_ticker
    return "$step_status"
}

ticker=
stop_ticker() {
    [ -n "$ticker" ] || return 0
    kill "$ticker" 2>/dev/null || :
    wait "$ticker" 2>/dev/null || :
    ticker=
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

tick() {
    trap - EXIT INT TERM
    exec 9>&-
    seconds=0
    # $$ is the script: no ticker outlives it.
    while sleep 1 >/dev/null && kill -0 $$ 2>/dev/null; do
        seconds=$((seconds + 1))
        if [ -t 2 ]; then
            printf '\r\033[K  %3d s  %.60s' "$seconds" "$(last_line)" >&2
        elif [ $((seconds % 30)) -eq 0 ]; then
            printf '  %3d s  %.60s\n' "$seconds" "$(last_line)" >&2
        fi
    done
}

last_line() { tail -n 1 "$log" 2>/dev/null | tr -cd '[:print:]'; }

# The reason for a failure of apt-get or pip, out of $log.
why() {
    if grep -qiE 'no space left|enough free space' "$log"; then
        echo "no room on the disk (log: $log)"
    elif grep -qiE 'failure (in name )?resol|(could|can) ?not (resolve|connect)|name or service not|network is unreachable|connection (timed out|refused|failed)|NewConnectionError|ConnectTimeout' "$log"; then
        echo "no network (log: $log)"
    elif grep -qiE 'unable to locate package|no installation candidate' "$log"; then
        echo "the machine's apt sources do not offer it (log: $log)"
    else
        echo "see $log"
    fi
}

check_system() {
    os=$(. /etc/os-release 2>/dev/null && echo "${ID:-unknown} ${VERSION_ID:-}") || os=unknown
    case $os in
    "debian 12" | "debian 13") ;;
    *) die "unsupported system: needs Debian 12 or 13, this is $os" ;;
    esac
    command -v apt-get >/dev/null || die "there is no apt-get on the PATH"
    [ "$(uname -m)" = x86_64 ] || die "unsupported system: needs x86_64, this is $(uname -m)"
}

# Sets $cache and takes the lock, so that two set-ups do not fill the same thing.
open_cache() {
    case ${XDG_CACHE_HOME:-} in
    /*) cache=$XDG_CACHE_HOME/drgn-tools ;;
    *) cache=${HOME:-/root}/.cache/drgn-tools ;; # also what the specification says of a relative path
    esac
    problem=$(mkdir -p "$cache/log" 2>&1 && : 2>&1 >>"$cache/log/lock") || die "cannot use the cache: $problem"
    export XDG_CACHE_HOME="${cache%/drgn-tools}"
    exec 9>>"$cache/log/lock"
    if ! flock -n 9; then
        say "waiting for another set-up that uses $cache"
        flock 9
    fi
}

check_room() {
    free=$(df -Pm "$cache" | awk 'NR == 2 { print $4 }')
    room_cache=$((room_cache - $(du -sm "$cache" | cut -f 1)))
    if [ "$room_cache" -lt 0 ]; then room_cache=0; fi
    [ "$free" -ge $((room_cache + room_work)) ] ||
        die "no room on the disk: $cache has $free MiB free, this needs $((room_cache + room_work))"
}

install_packages() {
    # shellcheck disable=SC2016 # the ${} are dpkg-query's
    installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ')"
    missing=
    for package in $packages; do
        case $installed in
        *" installed=$package "*) ;;
        *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0

    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        command -v sudo >/dev/null || die "needs root, or sudo, to install from Debian:$missing"
        # Ask for the password here, where nothing else writes to the terminal.
        sudo -n true 2>/dev/null || { [ -t 0 ] && sudo true; } ||
            die "sudo does not let this user install from Debian:$missing"
    fi
    # An update that fails may be about a source that is not needed; the installation
    # tells. The first line repairs what an interrupted run left.
    # shellcheck disable=SC2016 disable=SC2086 # for the inner shell; a list of words
    step "installing from Debian with apt-get:$missing" "$cache/log/apt.log" \
        $as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C \
        ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} \
        sh -c '
            dpkg --configure -a
            apt-get -q -o Acquire::Retries=1 update
            exec apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 \
                -o DPkg::Lock::Timeout=600 -o Acquire::Retries=1 install "$@"
        ' sh $missing || die "apt-get could not install what is missing: $(why)"
}

# Everything that pip would fetch or compile, as wheels, so that a venv can be made from
# the cache alone. One directory per Python and set of requirements, complete or not there.
fill_wheelhouse() {
    requirements=$("$python" - <<'END'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    pyproject = tomllib.load(file)
print("# Python %d.%d" % sys.version_info[:2])
print(*pyproject["build-system"]["requires"], "wheel", sep="\n")
print(*pyproject["project"]["dependencies"], sep="\n")
print(*pyproject["project"]["optional-dependencies"]["test"], sep="\n")
END
    ) || die "cannot read pyproject.toml"
    wheels=$cache/wheels/$(printf '%s' "$requirements" | sha256sum | cut -c 1-16)
    [ ! -d "$wheels" ] || return 0

    rm -rf "$cache/wheels/partial"
    mkdir -p "$cache/wheels/partial"
    printf '%s\n' "$requirements" >"$cache/wheels/partial/requirements.txt"
    step "fetching the Python packages" "$cache/log/pip.log" build_wheels ||
        die "pip could not fetch the Python packages: $(why)"
    mv "$cache/wheels/partial" "$wheels"
}

build_wheels() {
    "$python" -m venv "$cache/wheels/partial/venv" &&
        "$cache/wheels/partial/venv/bin/pip" wheel --disable-pip-version-check --retries 1 \
            --wheel-dir "$cache/wheels/partial" -r "$cache/wheels/partial/requirements.txt" &&
        rm -rf "$cache/wheels/partial/venv"
}

# .venv, with this checkout installed in it so that an edit takes effect.
fill_venv() {
    stamp="$PWD $wheels $(sha256sum <pyproject.toml)"
    if [ "$(cat .venv/.set-up 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c ''; then
        return 0
    fi
    step "making .venv" "$cache/log/venv.log" build_venv ||
        die "cannot make .venv: $(why)"
    printf '%s\n' "$stamp" >.venv/.set-up
}

# --isolated: an index or a place of wheels in the user's configuration is not asked.
build_venv() {
    rm -rf .venv &&
        "$python" -m venv .venv &&
        offline_pip -r "$wheels/requirements.txt" &&
        offline_pip --no-build-isolation --no-deps -e .
}

# --no-compile: most modules of what is installed are never imported.
offline_pip() {
    .venv/bin/pip --isolated --disable-pip-version-check install --no-compile \
        --no-index --find-links "$wheels" "$@"
}
