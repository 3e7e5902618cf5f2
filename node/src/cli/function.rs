//! `canal fn`: the functions of the namespace.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use canal_proto::Code;
use canal_proto::catalog::FunctionInfo;
use canal_proto::limits::MAX_COMPONENT;
use canal_sdk::{Error, FunctionLimits};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::connect::{Connect, Outcome, Reading, invalid};
use super::print::{Out, base16, left, moment, right, size, table};
use canal_sdk::Client;

/// What to do with functions.
#[derive(Debug, Subcommand)]
pub enum Function {
    /// Deploy a component under a name; a function that has the name runs the new component from then on
    Deploy(Deploy),
    /// List functions
    Ls(Ls),
    /// Remove a function
    Rm(Rm),
}

/// Flags of `canal fn deploy`.
#[derive(Debug, Args)]
pub struct Deploy {
    /// Name of the function
    name: String,
    /// The component: a .wasm file of the world `canal:function`
    file: PathBuf,
    /// Memory of one run, in MiB [default: 64]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=256))]
    memory: Option<u64>,
    /// Time of one run, in milliseconds [default: 1000]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    time: Option<u32>,
    /// Events that one run may emit, together, in KiB [default: 1024]
    #[arg(long, value_name = "KB", value_parser = clap::value_parser!(u64).range(1..=2048))]
    emit: Option<u64>,
    /// Rows that one run may write [default: 256]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    writes: Option<u32>,
    #[command(flatten)]
    connect: Connect,
}

impl Deploy {
    fn limits(&self) -> FunctionLimits {
        FunctionLimits {
            memory: self.memory.unwrap_or(0) << 20,
            time_ms: self.time.unwrap_or(0),
            emit_bytes: self.emit.unwrap_or(0) << 10,
            writes: self.writes.unwrap_or(0),
        }
    }
}

/// Flags of `canal fn ls`.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connect: Connect,
}

/// Flags of `canal fn rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Name of the function
    name: String,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(command: Function) -> ExitCode {
    match command {
        Function::Deploy(args) => match read(&args.file) {
            Ok(component) => args.connect.run(async |client, out| deploy(client, out, &args, component).await),
            Err(error) => super::fail(error.code, &error.message, args.connect.json()),
        },
        Function::Ls(args) => args.connect.run(async |client, out| {
            let functions = client.catalog("", &["functions"], args.reading.is_linearizable()).await?.functions;
            Ok(out.show(|| functions.iter().map(function_json).collect(), || functions_text(&functions))?)
        }),
        Function::Rm(args) => args.connect.run(async |client, out| {
            client.remove_function(&args.name).await?;
            let name = &args.name;
            Ok(out.show(|| json!({ "function": name, "removed": true }), || format!("function `{name}` is removed"))?)
        }),
    }
}

async fn deploy(client: Client, out: Out, args: &Deploy, component: Vec<u8>) -> Outcome {
    let function = client.deploy(&args.name, component, args.limits()).await?;
    let text = || {
        let hash: String = base16(&function.component).chars().take(16).collect();
        format!("function `{}` is deployed: {}, BLAKE3 {hash}…", function.name, size(function.size))
    };
    Ok(out.show(|| function_json(&function), text)?)
}

/// The file's bytes; no more of it is read than a component may have.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_COMPONENT as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| invalid(format!("{} can't be read: {error}", path.display())))?;
    if bytes.len() > MAX_COMPONENT {
        let message =
            format!("{} has more than the {} that a component may have", path.display(), size(MAX_COMPONENT as u64));
        return Err(Error::new(Code::TooLarge, message));
    }
    Ok(bytes)
}

fn function_json(function: &FunctionInfo) -> Value {
    let limits = &function.limits;
    json!({
        "name": function.name,
        "component": base16(&function.component),
        "size": function.size,
        "limits": {
            "memory_bytes": limits.memory_bytes(),
            "time_ms": limits.time(),
            "emit_bytes": limits.emitted(),
            "writes": limits.rows(),
        },
        "deployed_ms": function.deployed_ms,
    })
}

fn functions_text(functions: &[FunctionInfo]) -> String {
    let columns = [
        left("NAME"),
        left("COMPONENT"),
        right("SIZE"),
        right("MEMORY"),
        right("TIME"),
        right("EMIT"),
        right("WRITES"),
        left("DEPLOYED"),
    ];
    let row = |function: &FunctionInfo| {
        let limits = &function.limits;
        [
            function.name.clone(),
            base16(&function.component).chars().take(16).collect(),
            size(function.size),
            size(limits.memory_bytes()),
            format!("{} ms", limits.time()),
            size(limits.emitted()),
            limits.rows().to_string(),
            moment(function.deployed_ms),
        ]
    };
    table(columns, functions.iter().map(row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn function() -> FunctionInfo {
        FunctionInfo {
            name: "smooth".into(),
            component: vec![0xab; 32].into(),
            size: 1536,
            limits: FunctionLimits { memory: 8 << 20, ..FunctionLimits::default() },
            deployed_ms: 1_767_225_600_000,
        }
    }

    #[test]
    fn functions_are_listed() {
        assert_eq!(
            functions_text(&[function()]),
            "NAME    COMPONENT            SIZE   MEMORY     TIME     EMIT  WRITES  DEPLOYED\n\
             smooth  abababababababab  1.5 KiB  8.0 MiB  1000 ms  1.0 MiB     256  2026-01-01 00:00:00Z\n"
        );
        let hash = "ab".repeat(32);
        assert_eq!(
            function_json(&function()).to_string(),
            format!(
                r#"{{"component":"{hash}","deployed_ms":1767225600000,"limits":{{"emit_bytes":1048576,"memory_bytes":8388608,"time_ms":1000,"writes":256}},"name":"smooth","size":1536}}"#
            )
        );
    }

    #[test]
    fn a_file_that_can_not_be_read_or_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.wasm");
        let error = read(&path).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert_eq!(error.message, format!("{} can't be read: No such file or directory (os error 2)", path.display()));
        File::create(&path).unwrap().set_len(MAX_COMPONENT as u64 + 1).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
        assert_eq!(error.message, format!("{} has more than the 16.0 MiB that a component may have", path.display()));
    }
}
