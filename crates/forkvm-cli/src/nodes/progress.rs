//! How far an upload is: a bar on a terminal, a line elsewhere.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

/// A body that shows how much of it has been sent.
pub struct Body<'a> {
    bytes: &'a [u8],
    bar: Option<ProgressBar>,
}

impl<'a> Body<'a> {
    /// A program on its way to a node.
    pub fn new(url: &str, bytes: &'a [u8]) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(bytes.len() as u64).with_prefix(url.to_owned());
            bar.set_style(style("{prefix} [{wide_bar}] {bytes}/{total_bytes}"));
            bar
        });
        if bar.is_none() {
            err!("forkvm: {url}: sending {}", BinaryBytes(bytes.len() as u64));
        }
        Self { bytes, bar }
    }
}

/// The style of a template, or the default one of a template that is wrong.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(out)?;
        if let Some(bar) = &self.bar {
            bar.inc(n as u64);
            if self.bytes.is_empty() {
                bar.set_style(style("{prefix} {spinner} sent; the program starts there"));
                bar.enable_steady_tick(Duration::from_millis(100));
            }
        }
        Ok(n)
    }
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
