//! A varnishd of its own for a test.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{ENOUGH, ENOUGH_VCL, Slot, client::Client, guests, holdings::kib, program, vmod};

/// A running varnishd; dropping it ends it.
pub struct Varnishd {
    manager: Child,
    dir: PathBuf,
    pub port: u16,
    vcls: AtomicU32,
    _slot: Slot,
}

impl Varnishd {
    /// Starts it with these lines in vcl_init, in which GUESTS is the guest programs' folder and ENOUGH a time limit that
    /// nothing reaches. Every request but one for the host synth, which Varnish answers itself, is passed to kvm.backend(), or with a header X-LiveUpdate to
    /// kvm.live_update(), with X-LiveRollback to kvm.live_rollback(), with X-LiveDebug to kvm.live_debug(), with X-DebugKey to
    /// kvm.vm_debug_backend(). With X-Whole Varnish has all of the response before it sends any.
    pub fn start(vcl_init: &str) -> Self {
        Self::start_with(vcl_init, &[])
    }

    /// The same, with more arguments for varnishd.
    pub fn start_with(vcl_init: &str, arguments: &[&str]) -> Self {
        Self::start_vcl(|_| Self::vcl(vcl_init), arguments)
    }

    /// Starts it with vcl/kvm.vcl and these lines in vcl_init. Nothing comes from the cache, and the host synth is
    /// Varnish's own.
    pub fn start_shipped(vcl_init: &str, arguments: &[&str]) -> Self {
        let vcl = |dir: &Path| {
            copy_shipped_vcl(dir);
            format!(
                "vcl 4.1;
                include \"{dir}/kvm.vcl\";
                sub vcl_init {{ {vcl_init} }}
                sub vcl_recv {{
                    if (req.http.Host == \"synth\") {{
                        return (synth(200));
                    }}
                    return (pass);
                }}",
                dir = dir.display(),
                vcl_init = filled_in(vcl_init),
            )
        };
        Self::start_vcl(vcl, arguments)
    }

    /// Starts it with these subroutines of VCL, in which GUESTS and ENOUGH are as above.
    pub fn start_subs(subs: &str, arguments: &[&str]) -> Self {
        let vcl = |_: &Path| {
            format!(
                "vcl 4.1; import kvm from \"{}\"; backend default none; {}",
                vmod().display(),
                filled_in(subs)
            )
        };
        Self::start_vcl(vcl, arguments)
    }

    /// Starts it with a VCL, which may have files in the folder that it is given.
    fn start_vcl(vcl_of: impl FnOnce(&Path) -> String, arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let slot = Slot::take();
        let dir = std::env::temp_dir().join(format!(
            "kvm.{}.{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&dir).unwrap();
        let vcl = dir.join("first.vcl");
        fs::write(&vcl, vcl_of(&dir)).unwrap();
        let output = File::create(dir.join("output")).unwrap();
        let manager = Command::new(program("varnishd", "VARNISHD"))
            .args([
                "-F",
                "-j",
                "none",
                "-a",
                "127.0.0.1:0",
                "-p",
                "vcl_path=/",
                "-p",
                "auto_restart=off",
                // An idle worker else holds its VCL for a minute, and so does the end of varnishd.
                "-p",
                "debug=+vtc_mode",
            ])
            .args(arguments)
            .arg("-n")
            .arg(dir.join("n"))
            .arg("-f")
            .arg(&vcl)
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .unwrap();
        let mut varnishd = Self {
            manager,
            dir,
            port: 0,
            vcls: AtomicU32::new(0),
            _slot: slot,
        };
        varnishd.port = varnishd.wait_for_port();
        varnishd
    }

    fn vcl(vcl_init: &str) -> String {
        format!(
            "vcl 4.1;
            import kvm from \"{vmod}\";
            backend default none;
            sub vcl_init {{ {vcl_init} }}
            sub vcl_recv {{
                if (req.http.Host == \"synth\") {{
                    return (synth(200));
                }}
                if (req.url == \"/of-operators\") {{
                    return (synth(200, \"page\"));
                }}
                return (pass);
            }}
            sub vcl_synth {{
                if (resp.reason == \"page\") {{
                    kvm.synth_stats();
                    return (deliver);
                }}
            }}
            sub vcl_backend_fetch {{
                set bereq.backend = kvm.backend();
                if (bereq.http.X-LiveUpdate) {{
                    set bereq.backend = kvm.live_update(bereq.http.Host, bereq.http.X-LiveUpdate);
                }} else if (bereq.http.X-LiveDebug) {{
                    set bereq.backend = kvm.live_debug(bereq.http.Host, bereq.http.X-LiveDebug);
                }} else if (bereq.http.X-DebugKey) {{
                    set bereq.backend = kvm.vm_debug_backend(bereq.http.Host, bereq.http.X-DebugKey, bereq.url);
                }}
                if (bereq.http.X-LiveRollback) {{
                    set bereq.backend = kvm.live_rollback(bereq.http.Host, bereq.http.X-LiveRollback);
                }}
            }}
            sub vcl_backend_response {{
                if (bereq.http.X-Whole) {{
                    set beresp.do_stream = false;
                }}
            }}",
            vmod = vmod().display(),
            vcl_init = filled_in(vcl_init),
        )
    }

    fn wait_for_port(&mut self) -> u16 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.manager.try_wait().unwrap() {
                panic!("varnishd ended, {status}: {}", self.output());
            }
            // "a0 127.0.0.1 40321"
            if let Ok(addresses) = self.try_admin(&["debug.listen_address"])
                && let Some(port) = addresses
                    .split_whitespace()
                    .nth(2)
                    .and_then(|port| port.parse().ok())
            {
                return port;
            }
            assert!(
                start.elapsed() < ENOUGH,
                "varnishd does not start: {}",
                self.output()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What varnishd and its child wrote to stdout and stderr.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.join("output")).unwrap_or_default()
    }

    /// A folder for the test's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// A command for varnishadm.
    pub fn admin(&self, command: &[&str]) -> String {
        self.try_admin(command)
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The same, where failure is an option.
    pub fn try_admin(&self, command: &[&str]) -> Result<String, String> {
        let output = Command::new(program("varnishadm", "VARNISHADM"))
            // A VCL is compiled by cc, which takes its time on a busy machine; varnishadm waits 5 s unless told.
            .args(["-t", "60"])
            .arg("-n")
            .arg(self.dir.join("n"))
            .args(command)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text + &String::from_utf8_lossy(&output.stderr))
        }
    }

    /// Loads another VCL, uses it, and returns its name.
    pub fn reload(&self, vcl_init: &str) -> String {
        let name = format!("v{}", self.vcls.fetch_add(1, Ordering::Relaxed));
        let file = self.dir.join(format!("{name}.vcl"));
        fs::write(&file, Self::vcl(vcl_init)).unwrap();
        self.admin(&["vcl.load", &name, file.to_str().unwrap()]);
        self.admin(&["vcl.use", &name]);
        name
    }

    /// One of our counters.
    pub fn counter(&self, name: &str) -> u64 {
        let output = Command::new(program("varnishstat", "VARNISHSTAT"))
            .arg("-n")
            .arg(self.dir.join("n"))
            .args(["-1", "-f", &format!("KVM.{name}")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace()
            .nth(1)
            .unwrap_or_else(|| panic!("no counter {name}: {text}"))
            .parse()
            .unwrap()
    }

    /// All log records so far that have `pattern` in them.
    pub fn log(&self, pattern: &str) -> Vec<String> {
        let output = Command::new(program("varnishlog", "VARNISHLOG"))
            .arg("-n")
            .arg(self.dir.join("n"))
            .args(["-d", "-g", "raw"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.contains(pattern))
            .map(Into::into)
            .collect()
    }

    /// Ends the child the hard way, at once.
    pub fn kill_child(&self) {
        let pid = self.child().pid.try_into().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// Starts a child in the place of the killed one.
    pub fn start_child(&mut self) {
        let start = Instant::now();
        while !self
            .try_admin(&["status"])
            .is_ok_and(|status| status.contains("stopped"))
        {
            assert!(start.elapsed() < ENOUGH, "{}", self.output());
            thread::sleep(Duration::from_millis(20));
        }
        self.admin(&["start"]);
        self.port = self.wait_for_port();
    }

    /// The process that starts the one that serves.
    pub fn manager(&self) -> Process {
        Process {
            pid: self.manager.id(),
        }
    }

    /// The process that serves, and how much it holds.
    pub fn child(&self) -> Process {
        let manager = self.manager.id();
        let children =
            fs::read_to_string(format!("/proc/{manager}/task/{manager}/children")).unwrap();
        Process {
            pid: children
                .split_whitespace()
                .next()
                .expect("no child")
                .parse()
                .unwrap(),
        }
    }
}

/// With the guest programs' folder in the place of GUESTS, and a time that nothing reaches in that of ENOUGH.
fn filled_in(vcl: &str) -> String {
    vcl.replace("GUESTS", &guests().display().to_string())
        .replace("ENOUGH", ENOUGH_VCL)
}

/// Copies vcl/kvm.vcl and what it includes to a folder, with the VMOD that was built.
pub fn copy_shipped_vcl(folder: &Path) {
    for file in ["kvm.vcl", "kvm_subs.vcl"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vcl").join(file);
        let import = format!("import kvm from \"{}\";", vmod().display());
        let text = fs::read_to_string(path).unwrap();
        fs::write(folder.join(file), text.replace("import kvm;", &import)).unwrap();
    }
}

/// varnishd's child, or its manager.
pub struct Process {
    pid: u32,
}

impl Process {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Open descriptors that are KVM's: machines, vCPUs, memory.
    pub fn kvm_descriptors(&self) -> usize {
        let links = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().contains("kvm"))
            .count()
    }

    /// All open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .count()
    }

    /// Its memory mappings.
    pub fn mappings(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        maps.lines().count()
    }

    /// Whether it has a thread of this name.
    pub fn has_thread(&self, name: &str) -> bool {
        fs::read_dir(format!("/proc/{}/task", self.pid))
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .any(|found| found.trim_end() == name)
    }

    /// Its threads.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid))
            .unwrap()
            .count()
    }

    /// Lets it open so many descriptors more, and returns the limit before.
    pub fn leave_descriptors(&self, more: u64) -> u64 {
        let open: BTreeSet<u64> = fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        let mut free = (0..).filter(|number| !open.contains(number));
        self.limit_descriptors(free.nth(more as usize).unwrap())
    }

    /// Sets the number that its descriptors must be below, and returns the one before.
    pub fn limit_descriptors(&self, limit: u64) -> u64 {
        let pid = rustix::process::Pid::from_raw(self.pid.try_into().unwrap());
        let nofile = rustix::process::Resource::Nofile;
        let before = rustix::process::prlimit(
            pid,
            nofile,
            rustix::process::Rlimit {
                current: Some(limit),
                maximum: rustix::process::getrlimit(nofile).maximum,
            },
        );
        before.unwrap().current.unwrap()
    }

    /// Memory that it holds, in bytes.
    pub fn memory(&self) -> u64 {
        kib(&format!("/proc/{}/status", self.pid), "VmRSS:") << 10
    }
}

impl Drop for Varnishd {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut text = self.output();
            for line in self.log("kvm: ").iter().rev().take(50).rev() {
                let _ = writeln!(text, "{line}");
            }
            eprintln!("{text}");
        }
        let panicked = self.try_admin(&["panic.show"]).is_ok();
        // The manager ends its child and itself.
        let pid = rustix::process::Pid::from_child(&self.manager);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.manager.wait();
        let _ = fs::remove_dir_all(&self.dir);
        assert!(
            !panicked || thread::panicking(),
            "varnishd's child panicked"
        );
    }
}
