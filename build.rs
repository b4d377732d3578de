//! vmod.vcc, and the table of settings -> the VMOD's interface in Rust.
//!
//! build/vcc.rs puts the settings into vmod.vcc. Varnish's own vmodtool.py turns that into C: the argument structs
//! of the functions, the table of function pointers, and the description (JSON) that the VCL compiler reads from
//! the .so. The C is not compiled. rustc links a cdylib with a version script that hides every symbol that isn't Rust's, so the
//! `Vmod_kvm_Data` that varnishd looks up would be dropped. (Neither `--export-dynamic-symbol` nor
//! `--dynamic-list` wins against that script, and a second script is an error in GNU ld.) So bindgen reads the
//! C, which checks the functions' types on the way, and src/ffi.rs has `Vmod_kvm_Data`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, error::Error, fs};

#[path = "build/vcc.rs"]
mod vcc;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/vcc.rs");
    println!("cargo::rerun-if-changed=vmod.vcc");
    println!("cargo::rerun-if-changed=src/tenants/table.rs");
    println!("cargo::rerun-if-env-changed=VMODTOOL");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let varnish = pkg_config::probe_library("varnishapi")?;

    vcc::write(&out)?;
    vmodtool(&out)?;
    bindings(&out, &varnish.include_paths)?;

    // The engine has threads of its own; they must not outlive their code when the last VCL is discarded.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // libvarnishapi is found without LD_LIBRARY_PATH also where Varnish has a prefix of its own. The folder that
    // is linked from may hold a link only (scripts/compat.sh), and may go.
    for path in &varnish.link_paths {
        let library = fs::canonicalize(path.join("libvarnishapi.so"))?;
        let folder = library.parent().unwrap_or(path).display().to_string();
        if !SYSTEM.contains(&folder.as_str()) {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-rpath,{folder}");
        }
    }
    Ok(())
}

/// Where the loader looks without an rpath.
const SYSTEM: &[&str] = &["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"];

/// Runs vmodtool.py; leaves vcc_if.c, vcc_if.h and the man page's source in `out`.
fn vmodtool(out: &Path) -> Result<(), Box<dyn Error>> {
    let tool = match env::var("VMODTOOL") {
        Ok(tool) => tool,
        Err(_) => pkg_config::get_variable("varnishapi", "vmodtool")?,
    };
    let done = Command::new("python3")
        .arg(&tool)
        .args(["--strict", "-o", "vcc_if", "-w", "."])
        .arg("vmod.vcc")
        // It writes into the current directory whatever -o and -w say.
        .current_dir(out)
        .output()?;
    if !done.status.success() {
        return Err(format!("{tool}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    fs::write(out.join("config.h"), "/* vcc_if.c wants one */\n")?;
    Ok(())
}

/// Writes vcc_if.rs: the argument structs, the function table's type, the JSON, and `FILE_ID`.
fn bindings(out: &Path, include_paths: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let source = out.join("vcc_if.c");
    let c = fs::read_to_string(&source)?;
    let quoted_after = |marker: &str| {
        c.split_once(marker)
            .and_then(|(_, rest)| rest.split('"').nth(1))
            .ok_or_else(|| format!("vmodtool.py's output has no {marker}"))
    };
    let file_id = quoted_after(".file_id =")?;
    let vcs = quoted_after("v_used_(section(\".vmod_vcs\"))")?;
    // bindgen makes a constant of a pointer to a literal, but an extern static of an array.
    let constants = c
        .replace(
            "static const char Vmod_Json[] = {",
            "static const char *const Vmod_Json =",
        )
        .replace("\n};\n#undef STRINGIFY", ";\n#undef STRINGIFY");
    fs::write(&source, constants)?;

    bindgen::Builder::default()
        .header(source.display().to_string())
        .clang_arg(format!("-I{}", out.display()))
        .clang_args(include_paths.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_type("Vmod_vmod_kvm_Func")
        .allowlist_var("Vmod_Json")
        // Varnish's own types are those of the varnish crate.
        .blocklist_type("VCL_.*|vrt_ctx|vmod_priv|vcl_event_e")
        .raw_line("use varnish::ffi::{VclEvent as vcl_event_e, vmod_priv, vrt_ctx};")
        .raw_line("use varnish::ffi::{VCL_BACKEND, VCL_BOOL, VCL_BYTES, VCL_DURATION, VCL_INT, VCL_STRING};")
        .raw_line("type VCL_VOID = ();")
        .raw_line(format!("pub const FILE_ID: &::std::ffi::CStr = c\"{file_id}\";"))
        .raw_line(format!("pub const VCS: &::std::ffi::CStr = c\"{vcs}\";"))
        .generate_cstr(true)
        .generate()?
        .write_to_file(out.join("vcc_if.rs"))?;
    Ok(())
}
