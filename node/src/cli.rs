//! The command line: run a peer, or talk to one.
//!
//! Output goes to standard output, one JSON document or one line a record with `--json`; errors go to standard error,
//! with an exit code of their own for each kind ([`canal_proto::Code::exit_code`]).

use std::ffi::OsString;
use std::process::ExitCode;

use canal_proto::Code;
use clap::{Parser, Subcommand};

mod start;

/// A mesh of equal peers: topics, functions and state, without a broker.
#[derive(Debug, Parser)]
#[command(name = "canal", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a peer
    Start(start::Start),
    /// Print what is configured, and where each value came from
    Config(start::Show),
}

/// Runs the program with these arguments; the first is its name.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(Code::InvalidArgument.exit_code())
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Start(command) => start::run(command),
        Command::Config(command) => start::show(command),
    }
}

/// Says what went wrong, for people or for programs.
fn fail(code: Code, message: &str, json: bool) -> ExitCode {
    if json {
        eprintln!("{}", serde_json::json!({ "error": { "code": code.name(), "message": message } }));
    } else {
        eprintln!("canal: {message}");
    }
    ExitCode::from(code.exit_code())
}
