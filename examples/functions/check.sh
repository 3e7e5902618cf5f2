#!/bin/bash
# Says whether the components in built/ are those of the sources. Needs no compiler.
set -euo pipefail
cd "$(dirname "$0")"
. ./sources.sh
status=0
for name in $FUNCTIONS; do
  if ! grep -qxF "$(sources_line "$name")" built/SOURCES; then
    echo "built/$name.wasm does not match its sources; run examples/functions/build.sh" >&2
    status=1
  fi
done
exit $status
