//! The `canal-testnet` binary. With `canal` as its first argument it is the `canal` binary: that is how it starts
//! peers without having to look for another executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|first| first == "canal") {
        return canal_node::cli::main_with(std::env::args_os().skip(1));
    }
    canal_testnet::cli::main()
}
