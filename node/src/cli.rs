//! The command line: run a peer, or talk to one.
//!
//! Output goes to standard output, one JSON document or one line a record with `--json`; errors go to standard error,
//! with an exit code of their own for each kind ([`canal_proto::Code::exit_code`]).

use std::ffi::OsString;
use std::process::ExitCode;

use canal_proto::Code;
use clap::{Parser, Subcommand};

mod activation;
mod connect;
mod drain;
mod function;
mod group;
mod peers;
mod print;
mod publish;
mod queue;
mod start;
mod state;
mod stop;
mod subscribe;
mod subscription;
mod topic;
mod trigger;

/// What users tell apart by its exit code, and how it comes about.
const EXIT_CODES: &[(Code, &str)] = &[
    (Code::Internal, "an error of the peer's own; its log says more"),
    (Code::InvalidArgument, "a flag, a name or a file can't be used as it is"),
    (Code::UnknownTopic, "no such topic"),
    (Code::UnknownFunction, "no such function"),
    (Code::UnknownTrigger, "no such trigger"),
    (Code::UnknownGroup, "no such group"),
    (Code::UnknownActivation, "no such activation"),
    (Code::AlreadyExists, "it exists already, with another definition"),
    (Code::InUse, "it is still in use"),
    (Code::TooLarge, "a payload, a key, a value or a component over its limit"),
    (Code::BadComponent, "the file is no component of the world canal:function"),
    (Code::NoQuorum, "no majority within the deadline; it may have taken effect"),
    (Code::Unreachable, "no peer could be reached"),
    (Code::WouldBlock, "the group is busy, or the queue is full"),
    (Code::SequenceGap, "events were forgotten that the publisher had sent: its later ones are kept, not published"),
    (Code::Incompatible, "the peer has another version, or belongs to another mesh"),
    (Code::OutOfRange, "the offset is before the oldest or after the newest event"),
    (Code::Stopping, "the peer is shutting down"),
    (Code::TooManyProducers, "the topic has as many producers as it may: end some"),
    (Code::TakenOver, "the durable subscription was opened elsewhere"),
    (Code::Forgotten, "`canal start`: the disk is older than what the peer has promised; start it again"),
    (Code::UnknownSubscription, "no such durable subscription"),
];

fn after_help() -> String {
    let mut text = "Exit codes (with --json, the error's `code` has the name):\n   0  success\n".to_owned();
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("  {:>2}  {:<18}  {meaning}\n", code.exit_code(), code.name()));
        if *code == Code::InvalidArgument {
            text.push_str(&format!(
                "  {:>2}  {:<18}  `canal state get` found no such row\n",
                connect::NO_ROW,
                "unknown-row"
            ));
        }
    }
    text
}

/// A mesh of equal peers: topics, functions and state, without a broker.
#[derive(Debug, Parser)]
#[command(name = "canal", version, about, max_term_width = 100, after_help = after_help())]
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
    /// Create, list, show and remove topics
    #[command(subcommand)]
    Topic(topic::Topic),
    /// Publish an event, or the lines of standard input
    Pub(publish::Pub),
    /// Look at a queue on disk, and hand it over
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Print the events of a topic, or of all topics that a pattern matches, as they come
    Sub(subscribe::Sub),
    /// List and remove durable subscriptions
    #[command(subcommand)]
    Subscription(subscription::Durable),
    /// Deploy, list and remove functions
    #[command(subcommand, name = "fn")]
    Function(function::Function),
    /// Say which function fires on which topics
    #[command(subcommand)]
    Trigger(trigger::Trigger),
    /// Look at runs of functions
    #[command(subcommand)]
    Activation(activation::Activation),
    /// Read and write the rows of functions
    #[command(subcommand)]
    State(state::State),
    /// List the peers of the mesh, show how one stands, empty one
    #[command(subcommand)]
    Peer(peers::Peer),
    /// Show where a topic lives
    Route(group::Find),
    /// List and show groups
    #[command(subcommand)]
    Group(group::Group),
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
        Command::Topic(command) => topic::run(command),
        Command::Pub(command) => publish::run(command),
        Command::Queue(command) => queue::run(command),
        Command::Sub(command) => subscribe::run(command),
        Command::Subscription(command) => subscription::run(command),
        Command::Function(command) => function::run(command),
        Command::Trigger(command) => trigger::run(command),
        Command::Activation(command) => activation::run(command),
        Command::State(command) => state::run(command),
        Command::Peer(command) => peers::run(command),
        Command::Route(command) => group::route(command),
        Command::Group(command) => group::run(command),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_is_well_formed_and_takes_json_or_commands() {
        Cli::command().debug_assert();
        // a queue is this device's own: to look at it takes no peer
        let others = Cli::command();
        let others = others.get_subcommands().filter(|command| command.get_name() != "queue");
        let leaves = others.flat_map(leaves).collect::<Vec<_>>();
        assert_eq!(leaves.len(), 33);
        for (name, json, peer) in leaves {
            assert!(json, "{name}");
            assert_eq!(peer, !matches!(name.as_str(), "start" | "config"), "{name}");
        }
    }

    /// Names of the commands that do something, and whether they take `--json` and `--peer`.
    fn leaves(command: &clap::Command) -> Vec<(String, bool, bool)> {
        let has = |long: &str| command.get_arguments().any(|argument| argument.get_long() == Some(long));
        if command.has_subcommands() {
            return command.get_subcommands().flat_map(leaves).collect();
        }
        vec![(command.get_name().to_owned(), has("json"), has("peer"))]
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn command_lines_are_read_as_users_write_them() {
        for line in [
            "canal topic create plant/t --replicas 3 --group g --json",
            "canal topic ls plant/#",
            "canal topic producers ls t --limit 5 --from 000102030405060708090a0b0c0d0e0f",
            "canal topic producers end t 000102030405060708090a0b0c0d0e0f 100102030405060708090a0b0c0d0e0f",
            "canal pub t 21.5 --key s1 --header a=b --header c=d --peer 127.0.0.1:4040",
            "canal pub t -5",
            "canal pub t --stdin",
            "canal pub t x --queue q --no-wait --queue-events 5 --queue-mb 2",
            "canal queue ls q --json",
            "canal queue rm q plant/t --yes",
            "canal queue flush q --timeout 60 --peer 127.0.0.1:4040",
            "canal sub plant/+ --from earliest --count 3",
            "canal sub t --from 12 --timeout 2.5",
            "canal sub plant/# --durable audit --from earliest",
            "canal subscription ls t",
            "canal subscription ls --all --json",
            "canal subscription rm t audit",
            "canal fn deploy f f.wasm --memory 16 --time 50",
            "canal trigger create x --on a --on b/+ --fn f --from earliest --attempts 3 --backoff 10 --state s",
            "canal activation ls --trigger x --limit 5 --group g",
            "canal activation get x 3",
            "canal state put x k -1 --group g",
            "canal state ls x window/ --stale",
            "canal route t --fresh --mesh m",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in [
            "canal pub t",
            "canal pub t x --stdin",
            "canal pub t x --no-wait",
            "canal pub t x --queue q --queue-events 0",
            "canal queue ls",
            "canal queue rm q",
            "canal sub t --from yesterday",
            "canal sub t --count 0",
            "canal subscription ls",
            "canal subscription ls t --all",
            "canal topic create t --replicas 10",
            "canal topic producers end t",
            "canal topic producers end t 12",
            "canal trigger create x --fn f",
            "canal activation get x 0",
            "canal fn deploy f f.wasm --memory 0",
            "canal status --timeout 0",
        ] {
            assert!(parse(line).unwrap_err().use_stderr(), "{line}");
        }
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        for line in [
            "   3  unknown-row         `canal state get` found no such row",
            "  10  unknown-topic       no such topic",
            "  11  unknown-function    no such function",
            "  17  too-large           a payload, a key, a value or a component over its limit",
            "  18  bad-component       the file is no component of the world canal:function",
            "  19  no-quorum           no majority within the deadline; it may have taken effect",
            "  21  unreachable         no peer could be reached",
        ] {
            assert!(help.contains(line), "{line} is missing in {help}");
        }
    }
}
