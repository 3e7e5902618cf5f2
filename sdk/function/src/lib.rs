//! The guest library for Canal functions: with it, a function is a dozen lines.
//!
//! A function is compiled to a WebAssembly component. It is called with one event; it may read and write rows of
//! its own replicated state, and publish events. All of that takes effect at once if the function returns `Ok`, and
//! not at all if it returns an error or panics. A run may be repeated; what it comes to may not differ, which is
//! why the clock and the random numbers are the event's.
//!
//! ```no_run
//! use canal_function::{Context, Error, Event};
//!
//! canal_function::function!(handle);
//!
//! /// Counts the events of each key, and publishes every hundredth count.
//! fn handle(event: &Event, ctx: &mut Context) -> Result<(), Error> {
//!     let row = format!("count/{}", event.key_str()?);
//!     let count: u64 = ctx.get_str(&row)?.map_or(Ok(0), |text| text.parse())? + 1;
//!     ctx.put(&row, count.to_string())?;
//!     if count % 100 == 0 {
//!         ctx.emit("counts", count.to_string())?;
//!     }
//!     Ok(())
//! }
//! # fn main() {}
//! ```
//!
//! The crate of a function has `crate-type = ["cdylib"]`, is built for `wasm32-unknown-unknown`, and what comes out
//! is made a component by wit-component. Its logic is tested on the host with [`mock::Mock`].
#![deny(missing_docs)]

// The code that the macros generate names this crate from inside and from outside.
extern crate self as canal_function;

#[doc(hidden)]
pub mod bindings;
mod context;
mod error;
mod event;
#[cfg(not(target_family = "wasm"))]
pub mod mock;

pub use context::{Context, Level, Message, Row};
pub use error::Error;
pub use event::{Event, Header};

/// Makes a function of the Rust function that it is given, which is called with every event.
///
/// Takes a path to a `fn(&Event, &mut Context) -> Result<(), Error>`; once a crate, at its top level.
#[rustfmt::skip]
#[macro_export]
macro_rules! function {
    ($handle:path) => {
        #[doc(hidden)]
        #[allow(unsafe_code, reason = "a component's exports are unsafe functions")]
        const _: () = {
            struct Function;

            impl $crate::bindings::Guest for Function {
                fn handle(event: $crate::bindings::Event) -> ::core::result::Result<(), ::std::string::String> {
                    $crate::bindings::call(event, $handle)
                }
            }

            $crate::bindings::export!(Function with_types_in $crate::bindings);
        };
    };
}
