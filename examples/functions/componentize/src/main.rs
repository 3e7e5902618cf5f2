//! Makes a component of a core module: `componentize MODULE.wasm COMPONENT.wasm`.
//!
//! The module carries its WIT world in a custom section, which wit-bindgen put there. Runs on the host.

use anyhow::{Context, bail};
use wit_component::ComponentEncoder;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, component] = arguments.as_slice() else {
        bail!("usage: componentize MODULE.wasm COMPONENT.wasm");
    };
    let bytes = std::fs::read(module).with_context(|| format!("{module} can't be read"))?;
    let bytes = ComponentEncoder::default().validate(true).module(&bytes)?.encode()?;
    std::fs::write(component, bytes).with_context(|| format!("{component} can't be written"))
}
