#!/bin/bash
# Unpacks (does not install) containerd 2 and the Go CNI plugins of a newer Debian suite into a folder:
#   newer-components.sh FOLDER
# Then: PODWIRE_NEWER=FOLDER. It does nothing when FOLDER is complete. Needs apt-get and dpkg; fails with a
# clear word when the packages cannot be had.
set -euo pipefail
target=${1:?usage: newer-components.sh FOLDER}
suites=${PODWIRE_NEWER_SUITES:-testing sid}

complete() { [ -x "$1/usr/bin/containerd" ] && [ -x "$1/usr/lib/cni/bridge" ]; }
# shellcheck disable=SC2016  # the words between quotes are apt's
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" { print $1; exit }'
}

if complete "$target"; then
    echo "newer components: already in $target"
    exit 0
fi
command -v apt-get >/dev/null || { echo "newer components: there is no apt-get" >&2; exit 1; }
uri=$(mirror)
[ -n "$uri" ] || { echo "newer components: apt has no source to take them from" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unpack() { # suite; fails at the first step that does
    local suite=$1 package apt
    rm -rf "${work:?}"/*
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$work/sources.list"
    # Signatures are checked; the date is not, so that a mirror that is a snapshot will do.
    apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o Acquire::Retries=3 -o Acquire::Check-Valid-Until=false)
    "${apt[@]}" update </dev/null || return 1
    for package in containerd containernetworking-plugins; do
        (cd "$work" && "${apt[@]}" download "$package" </dev/null && dpkg -x "$package"_*.deb root) || return 1
    done
    # It has to run here, and to be a containerd that calls STATUS.
    "$work/root/usr/bin/containerd" --version | grep -qE ' v?2\.' &&
        CNI_COMMAND=VERSION "$work/root/usr/lib/cni/bridge" </dev/null | grep -q '"1\.1\.0"'
}

for suite in $suites; do
    if unpack "$suite"; then
        mkdir -p "$(dirname "$target")"
        rm -rf "$target"
        mv "$work/root" "$target"
        echo "newer components: $("$target/usr/bin/containerd" --version) from Debian $suite in $target"
        exit 0
    fi
    echo "newer components: none that run here in Debian $suite" >&2
done
exit 1
