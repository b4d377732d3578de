//! vmod.vcc with the settings: the table's entries as arguments of `kvm.tenant()` and `kvm.server()`, and their paragraphs.

use std::path::Path;
use std::{error::Error, fs};

use table::*;

#[path = "../src/tenants/table.rs"]
mod table;

/// A setting as vmod.vcc writes it.
struct Setting {
    name: &'static str,
    kind: &'static str,
    default: String,
    /// Lines of text, each with the space that it begins with.
    manual: &'static [&'static str],
}

/// A default as vmod.vcc writes it.
trait InVcc {
    fn in_vcc(&self) -> String;
}

impl InVcc for bool {
    fn in_vcc(&self) -> String {
        u8::from(*self).to_string()
    }
}

impl InVcc for i64 {
    fn in_vcc(&self) -> String {
        self.to_string()
    }
}

impl InVcc for f64 {
    fn in_vcc(&self) -> String {
        self.to_string()
    }
}

impl InVcc for &str {
    fn in_vcc(&self) -> String {
        format!("\"{}\"", self.escape_default())
    }
}

/// The table of settings.
fn settings() -> Vec<Setting> {
    macro_rules! table {
        ($(
            $(#[doc = $manual:literal])*
            $name:ident $(as $in_json:literal)?: $kind:ident $(($bounds:expr))? = $default:expr;
        )*) => {
            vec![$({
                $(let _ = $bounds;)?
                Setting {
                    name: stringify!($name),
                    kind: stringify!($kind),
                    default: ($default).in_vcc(),
                    manual: &[$($manual),*],
                }
            }),*]
        };
    }
    settings!(table)
}

/// Leaves vmod.vcc with the settings in `out`.
pub fn write(out: &Path) -> Result<(), Box<dyn Error>> {
    let (mut arguments, mut of_servers, mut manual) = (Vec::new(), Vec::new(), Vec::new());
    for setting in settings() {
        let kind = match setting.kind {
            "Time" => "DURATION",
            "Size" => "BYTES",
            "Count" | "CountOrDefault" => "INT",
            "Flag" => "BOOL",
            _ => "STRING",
        };
        let argument = format!("[{kind} {} = {}]", setting.name, setting.default);
        // kvm.server() has it in the third place.
        if setting.name != "main_arguments" {
            of_servers.push(argument.clone());
        }
        arguments.push(argument);
        manual.push(
            setting.name.to_owned()
                + "\n\t"
                + setting
                    .manual
                    .join("\n\t")
                    .replace("\t ", "\t")
                    .trim_start(),
        );
    }
    let vcc = fs::read_to_string("vmod.vcc")?;
    let vcc = vcc
        .replacen(
            "\t@ARGUMENTS@)",
            &format!("\t{})", arguments.join(",\n\t")),
            1,
        )
        .replacen(
            "\t@ARGUMENTS_OF_SERVERS@)",
            &format!("\t{})", of_servers.join(",\n\t")),
            1,
        )
        .replacen("\n@SETTINGS@\n", &format!("\n{}\n", manual.join("\n\n")), 1);
    Ok(fs::write(out.join("vmod.vcc"), vcc)?)
}
