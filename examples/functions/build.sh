#!/bin/bash
# Rebuilds the components in built/ from their sources.
#
# Needs a compiler for wasm32-unknown-unknown: rustup's (`rustup target add wasm32-unknown-unknown`), or any other
# that RUSTC names, with its linker in CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER. CARGO_TARGET_DIR is honoured, and
# arguments are passed on to cargo. A compiler whose std was built on this very machine has left its paths in there;
# then build std anew as well: RUSTC_BOOTSTRAP=1 ./build.sh -Zbuild-std=std,panic_abort
set -euo pipefail
cd "$(dirname "$0")"
. ./sources.sh
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

# No path of the machine that builds stands in a component.
root=$(realpath ../..)
sysroot=$("${RUSTC:-rustc}" --print sysroot)
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="--remap-path-prefix=$root=canal \
  --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo --remap-path-prefix=$sysroot=rust"

packages=()
for name in $FUNCTIONS; do packages+=(-p "$name"); done
cargo build --locked --release --target wasm32-unknown-unknown --target-dir "$target" "${packages[@]}" "$@"
env -u RUSTC -u RUSTC_BOOTSTRAP cargo build --locked --release -p componentize --target-dir "$target/componentize"

mkdir -p built
for name in $FUNCTIONS; do
  "$target/componentize/release/componentize" "$target/wasm32-unknown-unknown/release/$name.wasm" "built/$name.wasm"
done
{
  echo "# function, SHA-256 of its sources, SHA-256 of its component; written by build.sh, read by check.sh"
  for name in $FUNCTIONS; do sources_line "$name"; done
} >built/SOURCES
ls -l built/*.wasm
