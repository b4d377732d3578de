//! `forkvm new`: a small project that builds, tests, serves and uploads a program.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

/// Arguments of `forkvm new`.
#[derive(Debug, Args)]
pub struct New {
    /// The folder to make. Its last part is the program's name.
    folder: PathBuf,
    /// The language to write the program in.
    #[arg(short, long, value_enum, default_value = "c")]
    lang: Language,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    /// C, with gcc or clang
    C,
    /// C++, with g++ or clang++
    #[value(alias = "c++")]
    Cpp,
    /// Rust, with cargo
    Rust,
    /// Rust, with the http crate's types and async handlers
    RustHttp,
    /// Zig
    Zig,
}

/// A file of a project: where it goes, its content, and whether it can be executed. @NAME@ in templates is the program.
struct Template(&'static str, &'static str, bool);

macro_rules! template {
    ($path:literal, $file:literal) => {
        Template($path, include_str!(concat!("../templates/", $file)), false)
    };
}

/// A file of the SDK, as it is.
macro_rules! sdk {
    ($path:literal, $file:literal) => {
        Template(
            $path,
            include_str!(concat!("../../../guest-sdk/", $file)),
            false,
        )
    };
}

const TEST_SCRIPT: Template = Template("test.sh", include_str!("../templates/test.sh"), true);
const KVM_API: Template = sdk!("sdk/kvm_api.h", "c/kvm_api.h");
const KVM_COMPAT: Template = sdk!("sdk/kvm_compat.h", "c/kvm_compat.h");
const KVM_API_MOCK: Template = sdk!("sdk/kvm_api_mock.h", "c/kvm_api_mock.h");
const KVM_MOCK_FETCH: Template = sdk!("sdk/kvm_mock_fetch.h", "c/kvm_mock_fetch.h");
const KVM_MOCK_REGEX: Template = sdk!("sdk/kvm_mock_regex.h", "c/kvm_mock_regex.h");
const IGNORED: Template = Template(".gitignore", "/@NAME@\n/@NAME@-native\n*.o\n*.key\n", false);

const C: &[Template] = &[
    template!("main.c", "c/main.c"),
    template!("Makefile", "c/Makefile"),
    TEST_SCRIPT,
    IGNORED,
    KVM_API,
    KVM_COMPAT,
    KVM_API_MOCK,
    KVM_MOCK_FETCH,
    KVM_MOCK_REGEX,
];

const CPP: &[Template] = &[
    template!("main.cc", "cpp/main.cc"),
    template!("Makefile", "cpp/Makefile"),
    TEST_SCRIPT,
    IGNORED,
    KVM_API,
    KVM_COMPAT,
    KVM_API_MOCK,
    KVM_MOCK_FETCH,
    KVM_MOCK_REGEX,
];

const RUST: &[Template] = &[
    template!("src/main.rs", "rust/main.rs"),
    template!("Cargo.toml", "rust/Cargo.toml"),
];

const RUST_HTTP: &[Template] = &[
    template!("src/main.rs", "rust-http/main.rs"),
    template!("Cargo.toml", "rust-http/Cargo.toml"),
    sdk!("sdk/http/Cargo.toml", "rust/http/Cargo.toml"),
    sdk!("sdk/http/src/lib.rs", "rust/http/src/lib.rs"),
    sdk!(
        "sdk/http/examples/merged.rs",
        "rust/http/examples/merged.rs"
    ),
];

/// What both have.
const CARGO: &[Template] = &[
    template!(".cargo/config.toml", "rust/config.toml"),
    template!("Makefile", "rust/Makefile"),
    Template(".gitignore", "/@NAME@\n/target\n*.key\n", false),
    sdk!("sdk/Cargo.toml", "rust/Cargo.toml"),
    sdk!("sdk/src/fetch.rs", "rust/src/fetch.rs"),
    sdk!("sdk/src/lib.rs", "rust/src/lib.rs"),
    sdk!("sdk/src/mock.rs", "rust/src/mock.rs"),
    sdk!("sdk/src/native.rs", "rust/src/native.rs"),
    sdk!("sdk/src/raw.rs", "rust/src/raw.rs"),
    sdk!("sdk/src/regex.rs", "rust/src/regex.rs"),
    sdk!("sdk/src/request.rs", "rust/src/request.rs"),
    sdk!("sdk/src/response.rs", "rust/src/response.rs"),
    sdk!("sdk/src/shared.rs", "rust/src/shared.rs"),
    sdk!("sdk/src/storage.rs", "rust/src/storage.rs"),
    sdk!("sdk/src/task.rs", "rust/src/task.rs"),
];

const ZIG: &[Template] = &[
    template!("main.zig", "zig/main.zig"),
    template!("Makefile", "zig/Makefile"),
    template!("sdk/kvm_zig.c", "zig/kvm_zig.c"),
    TEST_SCRIPT,
    Template(
        ".gitignore",
        "/@NAME@\n/@NAME@-native\n/.zig-cache\n*.o\n*.key\n",
        false,
    ),
    KVM_API,
    KVM_COMPAT,
    KVM_API_MOCK,
    KVM_MOCK_FETCH,
    KVM_MOCK_REGEX,
];

impl Language {
    fn templates(self) -> impl Iterator<Item = &'static Template> {
        let (own, common): (_, &[Template]) = match self {
            Self::C => (C, &[]),
            Self::Cpp => (CPP, &[]),
            Self::Rust => (RUST, CARGO),
            Self::RustHttp => (RUST_HTTP, CARGO),
            Self::Zig => (ZIG, &[]),
        };
        own.iter().chain(common)
    }
}

impl New {
    /// Writes the project.
    pub fn execute(&self) -> ExitCode {
        match self.write() {
            Ok(()) => {
                let folder = self.folder.display();
                out!("Made {folder}. What there is to do there:\n");
                out!("    cd {folder}");
                out!("    make test     the tests, without a virtual machine");
                out!("    make dev      on http://127.0.0.1:8000");
                out!("    make upload   to a running Varnish");
                ExitCode::SUCCESS
            }
            Err(what) => {
                err!("forkvm: {}: {what}", self.folder.display());
                ExitCode::FAILURE
            }
        }
    }

    fn write(&self) -> Result<(), String> {
        let name = program_name(&self.folder)?;
        let empty = match fs::read_dir(&self.folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error.to_string()),
        };
        if !empty {
            return Err("the folder is there and not empty; nothing was changed".into());
        }
        for template in self.lang.templates() {
            let path = self.folder.join(template.0);
            template
                .write(&path, name)
                .map_err(|error| format!("{}: {error}", template.0))?;
        }
        Ok(())
    }
}

impl Template {
    fn write(&self, path: &Path, name: &str) -> io::Result<()> {
        let Self(_, text, executable) = self;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mode = if *executable { 0o777 } else { 0o666 };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?
            .write_all(text.replace("@NAME@", name).as_bytes())
    }
}

/// The folder's name, if it can be a program's in every language and in a Makefile.
fn program_name(folder: &Path) -> Result<&str, String> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.ok_or("the name of a new folder is needed")?;
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(valid) {
        return Err("a program's name has letters, digits, - and _, and a letter first".into());
    }
    // What a Makefile here has as a target, what is a folder here, and what cargo refuses.
    if [
        "all", "test", "dev", "upload", "clean", "help", "sdk", "src", "target", "main", "core",
        "std",
    ]
    .contains(&name)
    {
        return Err(format!(
            "{name} has a meaning of its own; take another name"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_programs() {
        for (folder, name) in [("hello", Ok("hello")), ("/a/b/pizza-2_x/", Ok("pizza-2_x"))] {
            assert_eq!(program_name(Path::new(folder)), name.map_err(str::to_owned));
        }
        for bad in [
            "", "/", "..", "2x", "-x", "a b", "a.b", "käse", "test", "sdk",
        ] {
            assert!(program_name(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
