//! What wasmtime generates from `proto/wit/function.wit`: the types that cross the border, and the trait that the
//! host implements. Nothing is written by hand here.
#![allow(unsafe_code, reason = "the generated code implements wasmtime's unsafe lifting and lowering traits")]
#![allow(clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../proto/wit",
    world: "function",
    exports: { default: async },
});
