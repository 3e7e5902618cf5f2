//! The `canal` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    canal_node::cli::main_with(std::env::args_os())
}
