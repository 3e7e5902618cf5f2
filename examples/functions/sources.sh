# Read by build.sh and check.sh: what a component is made of, and the line that says so in built/SOURCES.
FUNCTIONS="smooth train predict score"

# The SHA-256 over names and contents of all files that the component of function $1 is made of.
sources_hash() {
  {
    printf '%s\n' Cargo.toml Cargo.lock ../../sdk/function/Cargo.toml "$1/Cargo.toml" readings/Cargo.toml
    find "$1/src" readings/src ../../sdk/function/src ../../proto/wit -type f
  } | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1
}

# The line for function $1: its name, the hash of its sources, the hash of its component.
sources_line() {
  printf '%s %s %s\n' "$1" "$(sources_hash "$1")" "$(sha256sum "built/$1.wasm" | cut -d' ' -f1)"
}
