#!/bin/bash
# Installs the real components that tests (and the demo) use, where that is possible, and says what it did.
#   install-components.sh [program ...]     default: every program of the list below
# It never fails: what stays missing makes the tests that need it skip, with a reason.
# PODWIRE_INSTALL=0 keeps it from installing anything.
set -uo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# program or file : Debian package
list='
ip:iproute2
nsenter:util-linux
ps:procps
nft:nftables
iperf3:iperf3
iptables:iptables
busybox:busybox-static
runc:runc
containerd:containerd
podman:podman
conmon:conmon
/usr/lib/cni/bridge:containernetworking-plugins
make:make
gcc:gcc
/usr/include/stdio.h:libc6-dev
/usr/bin/python3.11:python3.11
etcd:etcd-server
kubectl:kubernetes-client
openssl:openssl
setpriv:util-linux
'

have() { [ -x "$1" ] || [[ $1 == *.h && -e $1 ]] || command -v "$1" >/dev/null 2>&1; }
say() { echo "components: $*"; }

missing=() packages=()
for entry in $list; do
    program=${entry%%:*}
    [ $# -eq 0 ] || [[ " $* " == *" $program "* ]] || continue
    have "$program" && continue
    missing+=("${program##*/}")
    packages+=("${entry##*:}")
done

if [ ${#missing[@]} -eq 0 ]; then
    say "all there"
elif [ "${PODWIRE_INSTALL:-1}" = 0 ]; then
    say "missing, and PODWIRE_INSTALL=0: ${missing[*]}"
elif [ "$(id -u)" != 0 ]; then
    say "missing, and only root can install them: apt-get install ${packages[*]}"
elif ! have apt-get; then
    say "missing, and there is no apt-get: install ${missing[*]} yourself"
else
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    quick=(-o Acquire::Retries=2 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=120)
    say "installing ${packages[*]}"
    apt-get "${quick[@]}" update -qq </dev/null >"$log" 2>&1 || say "apt-get update: $(tail -n 1 "$log")"
    if ! apt-get "${quick[@]}" install -y -qq --no-install-recommends "${packages[@]}" </dev/null >"$log" 2>&1; then
        # One that cannot be had must not keep the others away.
        for package in "${packages[@]}"; do
            apt-get "${quick[@]}" install -y -qq --no-install-recommends "$package" </dev/null >"$log" 2>&1 ||
                say "could not install $package: $(grep -m1 '^E:' "$log" || tail -n 1 "$log")"
        done
    fi
    rm -f "$log"
    say "done"
fi
exit 0
