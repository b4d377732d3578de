//! A program's file becomes a machine that can start: the ELF file, its symbols, its segments in guest memory, and the
//! stack that Linux would give it.

pub mod elf;
pub mod exec;
pub mod generators;
pub mod loader;
pub mod object;
pub mod stack;
pub mod start;
pub mod symbols;
pub mod toolchain;
