//! wasmtime as Canal uses it: what guests may use of WebAssembly, how instances are pooled, what is linked.
//!
//! Promises that one component gives one outcome for one input on every peer: NaNs are canonical, and threads and
//! relaxed SIMD are off. Refuses components that import anything but `canal:function`.

use canal_proto::limits::MAX_COMPONENT;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::Error;
use super::bindings::{Function, FunctionPre};
use super::host::Capabilities;
use super::limiter::MAX_TABLE_ENTRIES;

/// Runs that can stand in the pool at one time. Each costs address space always and memory only when used; with
/// their time sliced, more of them would only wait longer.
pub const MAX_RUNNING: u32 = 64;
/// Core instances of one component: a guest, its adapter and the shims around them.
const MAX_CORE_INSTANCES: u32 = 8;
/// Linear memories of one component: the guest's, and one for an adapter.
const MAX_MEMORIES: u32 = 2;
/// Tables of one component: the guest's, and those of the shims.
const MAX_TABLES: u32 = 8;
/// The most that a run's memory can be: what `FunctionLimits` allows at most.
const MAX_MEMORY: usize = 256 << 20;
/// Memory that stays with a free slot of the pool, so that the next run faults less; at most 4 MiB a peer.
const KEEP_RESIDENT: usize = 64 << 10;
/// Guest stack; the fiber's stack around it leaves the host calls room.
const GUEST_STACK: usize = 512 << 10;
const FIBER_STACK: usize = 1 << 20;
/// The package whose interfaces a function may import.
const OURS: &str = "canal:function/";

/// The border between host and guest: the engine and the linker of one runtime.
pub struct Border {
    pub engine: Engine,
    linker: Linker<Capabilities>,
}

impl Border {
    pub fn new() -> Result<Self, Error> {
        let broken = |error: wasmtime::Error| Error::Start { reason: format!("{error:#}") };
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(MAX_RUNNING)
            .total_core_instances(MAX_RUNNING * MAX_CORE_INSTANCES)
            .total_memories(MAX_RUNNING * MAX_MEMORIES)
            .total_tables(MAX_RUNNING * MAX_TABLES)
            .total_stacks(MAX_RUNNING)
            .max_core_instances_per_component(MAX_CORE_INSTANCES)
            .max_memories_per_component(MAX_MEMORIES)
            .max_tables_per_component(MAX_TABLES)
            .max_memory_size(MAX_MEMORY)
            .table_elements(MAX_TABLE_ENTRIES)
            .linear_memory_keep_resident(KEEP_RESIDENT);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .epoch_interruption(true)
            .max_wasm_stack(GUEST_STACK)
            .async_stack_size(FIBER_STACK)
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(false)
            .wasm_backtrace_max_frames(None);
        let engine = Engine::new(&config).map_err(broken)?;
        let mut linker = Linker::new(&engine);
        Function::add_to_linker::<_, HasSelf<Capabilities>>(&mut linker, |all| all).map_err(broken)?;
        Ok(Self { engine, linker })
    }

    /// Compiles a component and checks all that can be checked before it runs.
    pub fn compile(&self, bytes: &[u8]) -> Result<FunctionPre<Capabilities>, Error> {
        let bad = |reason: String| Error::BadComponent { reason };
        if bytes.len() > MAX_COMPONENT {
            let size = bytes.len();
            return Err(bad(format!("it has {size} bytes; at most {MAX_COMPONENT} are allowed")));
        }
        if bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(bad("it is a core module; make a component of it with wit-component".into()));
        }
        let component = Component::from_binary(&self.engine, bytes).map_err(|error| bad(one_line(&error)))?;
        let foreign = component.component_type();
        if let Some((name, _)) = foreign.imports(&self.engine).find(|(name, _)| !name.starts_with(OURS)) {
            return Err(bad(format!("it imports `{name}`; a function may import only `{OURS}host`")));
        }
        let pre = self.linker.instantiate_pre(&component).map_err(|error| bad(one_line(&error)))?;
        FunctionPre::new(pre).map_err(|error| bad(format!("it is not a `{OURS}function`: {}", one_line(&error))))
    }
}

/// An error with its causes, on one line.
pub fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}
