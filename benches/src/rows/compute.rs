//! Computing: the same C source as a native process, in a VM, and as WebAssembly, in turns.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use forkvm::Program;
use serde::{Deserialize, Serialize};

use crate::measure::{median, us};
use crate::rows::{answer, boot};
use crate::settings::Options;

/// The programs and what they are.
pub const PROGRAMS: [(&str, &str); 3] = [
    ("mandelbrot", "fractal as PNG"),
    ("sha256", "SHA-256 of 4 MiB"),
    ("query", "SQLite query"),
];

#[derive(Debug, Serialize, Deserialize)]
pub struct Compute {
    pub program: String,
    pub native_us: f64,
    pub vm_us: f64,
    /// `None` where the benchmark was built without wasmtime.
    pub wasm_us: Option<f64>,
    /// Medians of the rounds' ratios.
    pub vm_over_native: f64,
    pub wasm_over_native: Option<f64>,
}

pub fn run(options: &Options) -> Result<Vec<Compute>> {
    PROGRAMS
        .iter()
        .map(|(name, _)| program(options, name).with_context(|| format!("program {name}")))
        .collect()
}

fn program(options: &Options, name: &str) -> Result<Compute> {
    let mut native = Native::start(&options.guest(&format!("{name}.native")))?;
    let vm = boot(options, name, |config| config.limits.max_memory = 128 << 20)?;
    let mut wasm = Wasm::start(&options.guest(&format!("{name}.wasm")))?;
    let wanted = native.request()?.1;
    let (mut natives, mut vms, mut wasms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.amount(25, 6) {
        let (native_us, sum) = native.request()?;
        let (vm_us, vm_sum) = in_vm(&vm)?;
        let in_wasm = wasm.as_mut().map(Wasm::request).transpose()?;
        ensure!(sum == wanted && vm_sum == wanted, "the answers differ");
        ensure!(
            in_wasm.is_none_or(|(_, sum)| sum == wanted),
            "the answer of WebAssembly differs"
        );
        // Caches, and in the VM pages, are made in the first ones.
        if round >= 2 {
            natives.push(native_us);
            vms.push(vm_us);
            wasms.extend(in_wasm.map(|(time, _)| time));
        }
    }
    let ratio = |times: &[f64]| {
        median(
            &times
                .iter()
                .zip(&natives)
                .map(|(a, b)| a / b)
                .collect::<Vec<_>>(),
        )
    };
    let with_wasm = !wasms.is_empty();
    Ok(Compute {
        program: name.to_owned(),
        native_us: median(&natives),
        vm_us: median(&vms),
        wasm_us: with_wasm.then(|| median(&wasms)),
        vm_over_native: ratio(&vms),
        wasm_over_native: with_wasm.then(|| ratio(&wasms)),
    })
}

/// FNV-1a, as the native programs compute it.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A request to the VM: all of it, round trips and reset of the CPU's state included. The body's way out and the
/// reset of memory are not the program's computing.
fn in_vm(program: &Arc<Program>) -> Result<(f64, u64)> {
    let start = Instant::now();
    let mut answer = answer(program, b"/")?;
    let time = us(start.elapsed());
    let mut body = vec![0; usize::try_from(answer.body_len())?];
    let len = answer.read_body(&mut body);
    ensure!(len == body.len(), "the body ended early");
    Ok((time, checksum(&body)))
}

/// A native process, which times itself. It ends when its stdin does.
struct Native {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Native {
    fn start(path: &Path) -> Result<Self> {
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| path.display().to_string())?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self {
            child,
            stdin,
            stdout,
        })
    }

    fn request(&mut self) -> Result<(f64, u64)> {
        self.stdin
            .as_mut()
            .context("no stdin")?
            .write_all(b"/\n")
            .context("the native program ended")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let (time, sum) = line
            .trim()
            .split_once(' ')
            .context("the native program ended")?;
        Ok((time.parse::<f64>()? / 1000.0, u64::from_str_radix(sum, 16)?))
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.child.wait();
    }
}

/// An instance of a module, prepared.
#[cfg(feature = "wasm")]
struct Wasm(forkvm_bench_wasm::Running);

#[cfg(feature = "wasm")]
impl Wasm {
    fn start(path: &Path) -> Result<Option<Self>> {
        let program = forkvm_bench_wasm::Program::load(path).map_err(named)?;
        let mut instance = program.instance().map_err(named)?;
        instance.prepare().map_err(named)?;
        Ok(Some(Self(instance)))
    }

    fn request(&mut self) -> Result<(f64, u64)> {
        let start = Instant::now();
        let answer = self.0.answer(b"/").map_err(named)?;
        Ok((us(start.elapsed()), checksum(&answer.body)))
    }
}

/// wasmtime's error as ours.
#[cfg(feature = "wasm")]
fn named(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("WebAssembly: {error:#}")
}

/// Stands for it in a build without wasmtime.
#[cfg(not(feature = "wasm"))]
struct Wasm;

#[cfg(not(feature = "wasm"))]
impl Wasm {
    fn start(_path: &Path) -> Result<Option<Self>> {
        Ok(None)
    }

    fn request(&mut self) -> Result<(f64, u64)> {
        anyhow::bail!("built without wasmtime")
    }
}
