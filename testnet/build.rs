//! Compiles the library that makes faults in peers (`shim/faults.c`), for [`faults`](src/faults.rs) to embed. Where it
//! can't be compiled, an empty file is embedded, and the faults that need it are not made.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=shim/faults.c");
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    let library = out.join("faults.so");
    if let Err(why) = compile(&library) {
        println!("cargo::warning=shim/faults.c was not compiled ({why}); faults of disks and clocks can't be made");
        if let Err(error) = std::fs::write(&library, b"") {
            println!("cargo::error={} can't be written: {error}", library.display());
        }
    }
}

fn compile(library: &Path) -> Result<(), String> {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    if of("CARGO_CFG_TARGET_OS") != "linux" || of("CARGO_CFG_TARGET_POINTER_WIDTH") != "64" {
        return Err("it is for 64-bit Linux".into());
    }
    // the compiler that is there for the other C code of the build
    let mut build = cc::Build::new();
    let compiler = build.pic(true).opt_level(2).warnings(true).try_get_compiler().map_err(|e| e.to_string())?;
    let ran = compiler.to_command().args(["-shared", "-o"]).arg(library).args(["shim/faults.c", "-ldl"]).output();
    let ran = ran.map_err(|error| format!("{}: {error}", compiler.path().display()))?;
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).trim().replace('\n', "; "));
    }
    Ok(())
}
