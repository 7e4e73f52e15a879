#!/bin/bash
# Makes a virtual environment:   PYTHON=python3 make-venv.sh FOLDER
# Debian's Python comes without the venv module: it is installed where that is possible.
set -euo pipefail
folder=${1:?usage: make-venv.sh FOLDER}
python=${PYTHON:-}

fail() { echo "$*" >&2; exit 1; }

[ -n "$python" ] || fail "Python 3.11 or later is missing: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or later is needed, and $python is $("$python" --version 2>&1): set PYTHON"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "${PODWIRE_INSTALL:-1}" != 0 ] ||
        fail "the Python module venv is missing: apt-get install python3-venv"
    echo "installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null
    apt-get install -y -qq --no-install-recommends python3-venv </dev/null >/dev/null
fi
"$python" -m venv "$folder"
