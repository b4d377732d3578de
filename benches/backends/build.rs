//! Finds libvarnishapi, also where Varnish has a prefix of its own.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    for path in pkg_config::probe_library("varnishapi")?.link_paths {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-rpath,{}", path.display());
    }
    // wasmtime's signal handlers must not outlive their code.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}
