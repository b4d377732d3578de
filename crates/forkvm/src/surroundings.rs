//! What an unmodified program may read unless told otherwise: itself, and what every C library looks at.

use std::path::{Path, PathBuf};

use crate::linux::AllowedPath;

/// Where a dynamic linker, libraries and the interpreters of scripts are, and what every C library looks at: readable unless
/// told otherwise.
const SYSTEM: [&str; 24] = [
    "/bin",
    "/usr/bin",
    "/usr/local/bin",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/usr/share/locale",
    "/usr/share/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/host.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/services",
    "/etc/protocols",
];

/// Where programs look for programs: `PATH` of an environment that has none.
pub const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What any program may read, whatever else it may, but for its own file.
pub fn system_paths() -> impl Iterator<Item = AllowedPath> {
    let system = SYSTEM.iter().map(PathBuf::from);
    system.filter(|path| path.exists()).map(AllowedPath::from)
}

/// What has to be readable for the program at this path to be: its file, and a link that names it, which stays one.
pub fn program_paths(path: &Path) -> Vec<AllowedPath> {
    match path.canonicalize() {
        Ok(real) if path.is_symlink() => vec![
            AllowedPath {
                seen: path.into(),
                link: true,
                ..AllowedPath::from(&real)
            },
            real.into(),
        ],
        // One that is not there is told of where it is opened.
        _ => vec![path.into()],
    }
}
