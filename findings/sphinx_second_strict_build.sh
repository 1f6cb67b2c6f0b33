#!/usr/bin/env bash
# Sphinx==9.0.4
# `sphinx-build -W` exits with 1 on a broken reference. Run again with nothing changed, it exits with 0: the page was kept
# from the failed build, and the warnings of kept pages are not repeated. (Up to Sphinx 8.0, -W stopped at the first
# warning and kept nothing, so that the second build failed, too.) A build into an empty folder, or with -E, fails again.
#
# Seen:
#   first build: exit 1
#   second build, nothing changed: exit 0
#   third build, with -E: exit 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet sphinx==9.0.4 docutils==0.22.4

mkdir docs
echo "nitpicky = True" >docs/conf.py
printf 'Title\n=====\n\nSee :py:func:`nothing.there`.\n' >docs/index.rst

build() { # prints the exit status
    local status=0
    venv/bin/sphinx-build -q -W "$@" docs site 2>>warnings.txt || status=$?
    echo "$status"
}
first=$(build)
second=$(build)
third=$(build -E)
echo "first build: exit $first"
echo "second build, nothing changed: exit $second"
echo "third build, with -E: exit $third"
[ "$first $second $third" = "1 0 1" ] || { echo "the behaviour has changed" >&2; exit 1; }
