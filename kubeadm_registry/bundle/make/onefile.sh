#!/bin/sh
# kubeadm-registry @VERSION@ for Linux on @MACHINE@: one file that brings its own Python.
#
# The first start unpacks it into ${XDG_CACHE_HOME:-~/.cache}/kubeadm-registry (@MEGABYTES@ MB); later starts use that
# directory, which may be deleted at any time. Needs sh, tar, gzip, sha256sum and coreutils; those of busybox suffice.
set -euf

digest=@DIGEST@
start=@START@
program=bin/kubeadm-registry

fail() {
    printf 'kubeadm-registry: error: %s\n' "$1" >&2
    shift
    for hint; do
        printf '  hint: %s\n' "$hint" >&2
    done
    exit 1
}

payload() {
    tail -c +"$start" "$0"
}

# What decides which program runs must belong to this user or to root, up to the root directory, and nobody else may
# replace it: a directory that everybody can write to must have the sticky bit, as /tmp has.
check_owners() {
    directory=$1
    while :; do
        # shellcheck disable=SC2012,SC2046  # POSIX has no stat(1); of the output's words only mode and owner are used
        set -- $(ls -ldn "$directory/.")
        case $1 in
        d???????w[!tT]*) fail "every user may write to ${directory:-/}, and so replace the program" "$elsewhere" ;;
        esac
        if [ "$3" != "$user" ] && [ "$3" != 0 ]; then
            fail "${directory:-/} belongs to another user (uid $3), who may replace the program" "$elsewhere"
        fi
        [ -n "$directory" ] || break
        directory=${directory%/*}
    done
}

# Each start unpacks into a directory of its own, and a rename makes it visible; so two at the same time are safe, and
# one that was killed leaves nothing that another one would use.
unpack() (
    umask 077
    printf 'kubeadm-registry: unpacking into %s (once)\n' "$tool" >&2
    found=$(payload | sha256sum)
    [ "${found%% *}" = "$digest" ] || fail "$0 is damaged: its SHA-256 digest differs" "copy or download it again"
    new=$(mktemp -d "$home/.tool-XXXXXXXX") || fail "cannot create a directory in $home" "$elsewhere"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    payload | gzip -dc | tar -xf - -o -C "$new" ||
        fail "cannot unpack into $home" "make @MEGABYTES@ MB of space there, or $elsewhere"
    reason=$("$new/$program" --version 2>&1 < /dev/null) ||
        fail "programs in $home do not start: $reason" "if it is mounted with noexec, $elsewhere"
    sync -f "$new" 2> /dev/null || sync # a power cut must not leave a directory with empty files
    # If another start was quicker, this fails or moves the directory into the one that is there.
    mv "$new" "$tool" 2> /dev/null || :
    rm -rf "${tool:?}/${new##*/}"
)

for needed in tar gzip sha256sum head tail ls mkdir mktemp mv rm sync id uname dirname readlink; do
    command -v "$needed" > /dev/null || fail "the program $needed is missing" "install it (busybox has it)"
done
machine=$(uname -m)
[ "$machine" = @MACHINE@ ] || fail "this file is for @MACHINE@, and this machine is $machine"
case $(head -c 9 "$0" 2> /dev/null) in
"#!/bin/sh") ;;
*) fail "cannot read the file that was started" "run it by its path, and not from a pipe" ;;
esac

user=$(id -u)
elsewhere="set XDG_CACHE_HOME to a directory of your own"
case ${XDG_CACHE_HOME-} in
/*) home=$XDG_CACHE_HOME ;;
*) # the XDG base directory specification says to ignore a relative path
    [ -n "${HOME-}" ] || fail "HOME is not set" "$elsewhere"
    home=$HOME/.cache
    ;;
esac
home=$home/kubeadm-registry
(umask 077 && mkdir -p "$home") || fail "cannot create $home" "$elsewhere"
home=$(cd -P "$home" && pwd -P)
check_owners "$home"
tool=$home/tool-$digest
[ -x "$tool/$program" ] || unpack
check_owners "$tool"
[ -x "$tool/$program" ] || fail "$tool is not complete" "remove it and run this again"
exec "$tool/$program" "$@"
