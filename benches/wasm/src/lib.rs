//! The benchmark's programs as WebAssembly, run by wasmtime in the way that serves requests fastest: compiled
//! beforehand, linked beforehand, memory from the pooling allocator and copied on write from the module's image.
#![cfg(feature = "runtime")]

use std::path::Path;

use wasmtime::error::Context as _;
use wasmtime::{
    Config, Engine, Instance, InstanceAllocationStrategy, InstancePre, Linker, Memory, Module,
    PoolingAllocationConfig, Result, Store, TypedFunc, bail, format_err,
};

/// Most instances at once.
const INSTANCES: u32 = 256;
/// The URL's buffer in the module, less its NUL.
const LONGEST_URL: usize = 4095;

/// A compiled program.
pub struct Program {
    engine: Engine,
    linked: InstancePre<()>,
}

/// An answer's content type and body.
pub struct Answer {
    /// Content type.
    pub content_type: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Program {
    /// Compiles a module.
    ///
    /// # Errors
    /// The file can't be read, is not a module, or needs more of the pool than there is.
    pub fn load(path: &Path) -> Result<Self> {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_core_instances(INSTANCES)
            .total_memories(INSTANCES)
            .total_tables(INSTANCES);
        let mut config = Config::new();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let module = Module::new(&engine, bytes).with_context(|| path.display().to_string())?;
        let mut linker = Linker::new(&engine);
        // What libc might ask of the system; the programs never do.
        linker.define_unknown_imports_as_traps(&module)?;
        let linked = linker.instantiate_pre(&module)?;
        Ok(Self { engine, linked })
    }

    /// A fresh instance, `prepare()` not yet called.
    ///
    /// # Errors
    /// The pool is empty, or the module lacks an export.
    pub fn instance(&self) -> Result<Running> {
        let mut store = Store::new(&self.engine, ());
        let instance = self.linked.instantiate(&mut store)?;
        // A reactor's constructors.
        if let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
            initialize.call(&mut store, ())?;
        }
        let memory = instance
            .get_memory(&mut store, "memory")
            .ok_or_else(|| format_err!("no export memory"))?;
        let answer = instance.get_typed_func(&mut store, "answer")?;
        Ok(Running {
            store,
            instance,
            memory,
            answer,
        })
    }
}

/// An instance.
pub struct Running {
    store: Store<()>,
    instance: Instance,
    memory: Memory,
    answer: TypedFunc<(), u32>,
}

impl Running {
    /// The program's set-up.
    ///
    /// # Errors
    /// It traps.
    pub fn prepare(&mut self) -> Result<()> {
        self.instance
            .get_typed_func::<(), ()>(&mut self.store, "prepare")?
            .call(&mut self.store, ())
    }

    /// A request.
    ///
    /// # Errors
    /// It traps, or what it gives lies outside of its memory.
    pub fn answer(&mut self, url: &[u8]) -> Result<Answer> {
        if url.len() > LONGEST_URL {
            bail!("the URL is too long");
        }
        let buffer = self
            .instance
            .get_typed_func::<(), u32>(&mut self.store, "url_buffer")?;
        let place = buffer.call(&mut self.store, ())? as usize;
        self.memory.write(&mut self.store, place, url)?;
        self.memory
            .write(&mut self.store, place + url.len(), &[0])?;

        let place = self.answer.call(&mut self.store, ())? as usize;
        let mut fields = [[0; 4]; 4];
        self.memory
            .read(&self.store, place, fields.as_flattened_mut())?;
        let [content_type, content_type_len, body, body_len] =
            fields.map(|bytes| u32::from_le_bytes(bytes) as usize);
        let piece = |start: usize, len: usize| {
            let end = start.checked_add(len);
            end.and_then(|end| self.memory.data(&self.store).get(start..end))
                .ok_or_else(|| format_err!("the answer lies outside of the memory"))
        };
        Ok(Answer {
            content_type: String::from_utf8_lossy(piece(content_type, content_type_len)?)
                .into_owned(),
            body: piece(body, body_len)?.to_vec(),
        })
    }
}
