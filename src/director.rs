//! A VCL's tenants, each a backend of its own, and how a fetch comes to one of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use regex::{Regex, RegexBuilder};
use serde::Serialize as _;
use serde_json::json;
use serde_json::ser::{PrettyFormatter, Serializer};
use varnish::ffi::VCL_BACKEND;
use varnish::vcl::{Ctx, LogTag, VclError};

use crate::backend::{self, Backend};
use crate::fetch::answer;
use crate::fetch::due;
use crate::fetch::pipe::Client;
use crate::fetch::response::{Late, Response};
use crate::file;
use crate::order::{Order, Target};
use crate::orders::update::{self, Source, Turn};
use crate::orders::{debug, upload, watch};
use crate::tenants::document::{self, Definition, Described, Warnings};
use crate::tenants::entries::BadDocument;
use crate::tenants::keys::Denied;
use crate::tenants::registry::Shared;
use crate::tenants::settings::{BadSetting, Settings};
use crate::tenants::signature::Action;
use crate::tenants::tenant::{State, Tenant};
use crate::tenants::version::Version;
use crate::tenants::waits::Waits;
use crate::tenants::{boot, name, page, prometheus, queue, registry, report};
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;
use crate::vdi::{self, Answer, Methods, Registered, Resolve, SICK, Vdi};

/// The backends of a VCL's tenants, by their names. Written in vcl_init only.
type Backends = RwLock<HashMap<String, Registered<Backend>>>;

/// Longest compiled pattern, in bytes.
const MOST_PATTERN: usize = 1 << 20;
/// How deep its groups may be: each takes some of a worker's stack, which is short.
const DEEPEST_PATTERN: u32 = 16;

/// The director `kvm` of a VCL, which finds the backend that a fetch is for.
pub struct Director {
    backends: Arc<Backends>,
    /// What is known of those that were described in JSON.
    definitions: Mutex<HashMap<String, Known>>,
    /// What its load may wait.
    waits: Waits,
    orders: Registered<Orders>,
}

/// A tenant that was described in JSON.
struct Known {
    definition: Definition,
    /// Nothing of it can be changed any more.
    started: bool,
}

/// The backend `kvm-orders` of a VCL: it carries out what needs a key, also for tenants that are sick.
struct Orders {
    backends: Arc<Backends>,
}

/// Why tenants can't be added.
#[derive(Debug, thiserror::Error)]
pub enum NotAdded {
    /// A setting makes no sense.
    #[error(transparent)]
    BadSetting(#[from] BadSetting),
    /// Varnish takes no more backends.
    #[error("{0}")]
    NoBackend(VclError),
}

/// What an operator is shown.
pub struct Shown {
    pub content_type: &'static str,
    pub text: Vec<u8>,
}

impl Director {
    /// One without tenants yet, for the VCL that `ctx` is about, whose load may wait so long for others.
    pub fn register(ctx: &Ctx<'_>, waits: Duration) -> Result<Registered<Self>, VclError> {
        let backends = Arc::<Backends>::default();
        let orders = Orders {
            backends: backends.clone(),
        };
        let orders = Registered::new(ctx, c"kvm-orders", orders)?;
        let director = Self {
            backends,
            definitions: Mutex::default(),
            waits: Waits::new(waits),
            orders,
        };
        Registered::new(ctx, c"kvm", director)
    }

    /// Adds tenants, whose programs begin to boot: all, or none if a name is there twice.
    pub fn add_all(&self, ctx: &Ctx<'_>, tenants: Vec<Settings>) -> Result<(), NotAdded> {
        let mut here = self.backends.write();
        let mut names = HashSet::new();
        for settings in &tenants {
            let name = &settings.config.name;
            if here.contains_key(name) || !names.insert(name) {
                let twice = "is given twice in this VCL".to_owned();
                return Err(BadSetting::new(name.as_bytes(), "name", twice).into());
            }
        }
        due::start();
        for settings in tenants {
            if let Some(denied) = settings.key.problem() {
                logging::log(
                    LogTag::Error,
                    &settings.config.name,
                    &format!("no updates and no debugging: {denied}"),
                );
            }
            let tenant = match registry::share(settings) {
                Shared::Known(tenant) => tenant,
                Shared::New(tenant, file) => {
                    watch::start();
                    let of = Arc::downgrade(&tenant);
                    let boot = move || {
                        if let Some(tenant) = of.upgrade() {
                            queue::enqueue(&tenant, file);
                        }
                    };
                    match tenant.settings.values.start {
                        true => boot(),
                        false => tenant.sleep(boot),
                    }
                    tenant
                }
            };
            let name = tenant.name().to_owned();
            // No NUL can be in a name.
            let listed = CString::new(format!("kvm.{name}")).unwrap_or_default();
            let backend = Registered::new(ctx, &listed, Backend::of(tenant));
            here.insert(name, backend.map_err(NotAdded::NoBackend)?);
        }
        Ok(())
    }

    /// Adds all of the tenants that `call`, a call of VCL's, reads in a document, or none. Warnings are logged; if there is
    /// an error, they are in it, a line each, since what was misspelt may be what is missing. If it is `strict`, keys that nobody knows are an error.
    pub fn add_document(
        &self,
        ctx: &Ctx<'_>,
        call: &str,
        strict: bool,
        read: impl FnOnce(&mut Warnings) -> Result<Vec<Described>, BadDocument>,
    ) -> Result<(), String> {
        let mut warnings = Warnings::default();
        let read = read(&mut warnings).map_err(|bad| bad.to_string());
        let read = match warnings.unknown {
            0 => read,
            _ if !strict => read,
            unknown => Err(format!("{unknown} keys are unknown (strict)")),
        };
        if let Err(bad) = read.and_then(|described| self.add_described(ctx, described)) {
            warnings.lines.insert(0, bad);
            return Err(warnings.lines.join("\n"));
        }
        for warning in warnings.lines {
            for record in logging::records(format!("kvm.{call}: {warning}").as_bytes()) {
                logging::write(LogTag::Notice, &record);
            }
        }
        Ok(())
    }

    fn add_described(&self, ctx: &Ctx<'_>, described: Vec<Described>) -> Result<(), String> {
        let lines: Vec<_> = described
            .iter()
            .map(|tenant| (tenant.settings.config.name.clone(), tenant.line))
            .collect();
        let (settings, definitions): (Vec<_>, Vec<_>) = described
            .into_iter()
            .map(|tenant| (tenant.settings, tenant.definition))
            .unzip();
        let added = self.add_all(ctx, settings);
        if added.is_ok() {
            let names = lines.iter().map(|(name, _)| name.clone());
            let known = definitions.into_iter().map(|definition| Known {
                definition,
                started: false,
            });
            self.definitions.lock().extend(names.zip(known));
        }
        added.map_err(|error| match error {
            NotAdded::BadSetting(bad) => {
                let line = lines.iter().rfind(|(name, _)| *name == bad.tenant);
                let line = line.map_or(0, |(_, line)| *line);
                BadDocument::Setting { line, bad }.to_string()
            }
            NotAdded::NoBackend(error) => error.to_string(),
        })
    }

    /// Gives a tenant that JSON has described other settings, or describes another one. In vcl_init only.
    pub fn configure(&self, ctx: &Ctx<'_>, name: &[u8], json: &[u8]) -> Result<(), String> {
        let name = name::canonical(name).ok_or("that is no name")?;
        let known = match self.definitions.lock().get(&*name) {
            Some(Known { started: true, .. }) => return Err("it has been started".into()),
            Some(known) => Some(known.definition.clone()),
            None if self.has(name.as_bytes()) => {
                return Err("it is not described in JSON: its settings are in kvm.tenant()".into());
            }
            None => None,
        };
        self.add_document(ctx, "configure()", false, |warnings| {
            let described = document::configured(&name, known, json, warnings)?;
            // The one before, which nobody has asked for.
            let before = self.backends.write().remove(&*name);
            drop(before);
            Ok(vec![described])
        })
    }

    /// What the VCL's load may wait.
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Has the tenant's program booted, which need not be asked for; unless somebody is to wait for it that is all. An error is one that
    /// was waited for. What the load has no time left for goes on without it, which is logged.
    pub fn start(&self, name: &[u8], wait: bool) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        if let Some(known) = self.definitions.lock().get_mut(tenant.name()) {
            known.started = true;
        }
        if !wait {
            tenant.wake();
            return Ok(());
        }
        let limit = tenant.settings.config.limits.max_boot_time;
        let (state, time) = self
            .waits
            .spend(limit, |time| (tenant.settled(Instant::now() + time), time));
        match state {
            State::Ready(_) => Ok(()),
            State::Failed(failed) => Err(failed.reason.to_string()),
            State::Booting if time < limit => {
                let text = format!(
                    "it boots in the background, though kvm.start() was to wait for it: {}",
                    self.waits.over()
                );
                logging::log(LogTag::Notice, tenant.name(), &text);
                Ok(())
            }
            State::Booting => Err(format!("it is not ready after {limit:?} (max_boot_time)")),
        }
    }

    /// Has the programs loaded anew whose tenants' names match a pattern, when somebody asks for them next, and says how many these
    /// are.
    pub fn invalidate(&self, pattern: &[u8]) -> Result<usize, String> {
        let matching = self.matching(pattern)?;
        let found = matching.values();
        let found = found.filter(|tenant| matches!(tenant.state(), State::Ready(_)));
        Ok(found.inspect(|tenant| renew_later(tenant)).count())
    }

    /// Whether there is such a tenant.
    pub fn has(&self, name: &[u8]) -> bool {
        named(&self.backends, name).is_some()
    }

    /// Whether the tenant's program takes requests.
    pub fn is_ready(&self, ctx: &Ctx<'_>, name: &[u8]) -> bool {
        let Some(name) = name::of_host(name) else {
            return false;
        };
        self.backends.read().get(&*name).is_some_and(|backend| {
            let state = backend.director().tenant().state();
            matches!(state, State::Ready(_)) && backend.is_healthy(ctx)
        })
    }

    /// Whether a request for the tenant would find a fork, or a place to wait in. One that does not counts as turned away. An
    /// unknown one is not turned away so.
    pub fn has_room(&self, host: &[u8]) -> Result<(), String> {
        let tenant = name::of_host(host).and_then(|name| self.named(name.as_bytes()));
        let Some(tenant) = tenant else { return Ok(()) };
        tenant
            .has_room()
            .inspect_err(|_| answer::count_busy(&tenant))
    }

    /// The tenant, to be asked without a fetch. As for one, what an operator says counts.
    pub fn usable(&self, ctx: &Ctx<'_>, host: &[u8]) -> Result<Arc<Tenant>, String> {
        let backends = self.backends.read();
        let found = name::of_host(host).and_then(|name| backends.get(&*name));
        let backend = found.ok_or_else(|| backend::unknown(host, backends.len()))?;
        match backend.is_healthy(ctx) {
            true => Ok(backend.director().tenant().clone()),
            false => Err(backend.director().unusable()),
        }
    }

    /// The tenants whose names match a pattern, by these.
    fn matching(&self, pattern: &[u8]) -> Result<BTreeMap<String, Arc<Tenant>>, String> {
        let matches = regex(pattern)?;
        let backends = self.backends.read();
        let found = backends.iter().filter(|(name, _)| matches.is_match(name));
        let tenant = |backend: &Registered<Backend>| backend.director().tenant().clone();
        Ok(found
            .map(|(name, backend)| (name.clone(), tenant(backend)))
            .collect())
    }

    /// The figures of the tenants whose names match a pattern, as JSON: in one line, or with so many spaces for each level.
    pub fn stats(&self, pattern: &[u8], indentation: Option<usize>) -> Result<Vec<u8>, String> {
        let found = self.matching(pattern)?;
        let figures = found.iter();
        let figures: BTreeMap<_, _> = figures
            .map(|(name, tenant)| (name, report::figures(tenant)))
            .collect();
        let mut text = Vec::new();
        let written = match indentation {
            None => serde_json::to_writer(&mut text, &figures),
            Some(spaces) => {
                let spaces = vec![b' '; spaces];
                let pretty = PrettyFormatter::with_indent(&spaces);
                figures.serialize(&mut Serializer::with_formatter(&mut text, pretty))
            }
        };
        written.map_err(|error| error.to_string())?;
        Ok(text)
    }

    /// The tenants whose names match a pattern, for an operator: as a page for people, for Prometheus, or as JSON.
    pub fn shown(&self, form: &[u8], pattern: &[u8]) -> Result<Shown, String> {
        if form == b"json" {
            return Ok(Shown {
                content_type: "application/json",
                text: self.stats(pattern, Some(2))?,
            });
        }
        let found = self.matching(pattern)?;
        let tenants = found.values().map(|tenant| &**tenant);
        match form {
            b"page" => Ok(Shown {
                content_type: page::CONTENT_TYPE,
                text: page::text(tenants).into_bytes(),
            }),
            b"prometheus" => Ok(Shown {
                content_type: prometheus::CONTENT_TYPE,
                text: prometheus::text(tenants)?,
            }),
            _ => Err("it is shown as a page, prometheus or json".into()),
        }
    }

    /// Which program the tenant runs.
    pub fn version(&self, name: &[u8]) -> Option<Version> {
        match self.named(name)?.state() {
            State::Ready(release) => Some(release.version),
            _ => None,
        }
    }

    fn named(&self, name: &[u8]) -> Option<Arc<Tenant>> {
        named(&self.backends, name)
    }

    /// Makes the program in a file the tenant's. The reason is in the log if that fails.
    pub fn live_update_file(&self, name: &[u8], path: &Path) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        let turn = Turn::take(&tenant).map_err(|busy| busy.to_string())?;
        let elf = file::open(path)
            .and_then(|(file, _)| boot::read_file(&tenant, file))
            .map_err(|reason| format!("{}: {reason}", path.display()))?;
        update::update(&tenant, Source::Given(elf), turn)
            .map(|_| ())
            .map_err(|refused| refused.to_string())
    }

    /// Whether the key is the tenant's that an order is for, which comes by this method.
    pub fn check_key(&self, name: &[u8], key: &[u8], method: Option<&str>) -> Result<(), String> {
        let tenant = named(&self.backends, name).ok_or("no such tenant")?;
        match tenant.check_any(key, method.unwrap_or("POST")) {
            // The order itself will say so.
            Err(Denied::Unreadable(_)) => Ok(()),
            checked => checked.map_err(|denied| denied.to_string()),
        }
    }

    /// Gives the tenant the program that it had before; with a key, only if that is right.
    pub fn rollback(&self, name: &[u8], key: Option<&[u8]>) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        if let Some(key) = key {
            tenant
                .check(key, "POST", Action::Rollback)
                .and_then(|proof| proof.spend_without_body(tenant.name()))
                .map_err(|denied| denied.to_string())?;
        }
        let turn = Turn::take(&tenant).map_err(|busy| busy.to_string())?;
        update::update(&tenant, Source::Rollback, turn)
            .map(|_| ())
            .map_err(|refused| refused.to_string())
    }

    /// The backend that a fetch is for.
    fn of_fetch(&self, fetch: &Fetch<'_, '_>) -> Result<VCL_BACKEND, String> {
        let target = Target::of(fetch).ok_or(backend::NO_TARGET)?;
        if target.order.is_some() {
            return Ok(self.orders.backend());
        }
        let given = target.tenant.as_deref();
        let asked = given.or_else(|| fetch.header("host")).unwrap_or_default();
        let backends = self.backends.read();
        let backend = name::of_host(asked).and_then(|name| backends.get(&*name));
        let unknown = || backend::unknown(asked, backends.len());
        backend.map(Registered::backend).ok_or_else(unknown)
    }
}

impl Vdi for Director {
    const METHODS: &'static Methods = &vdi::resolving::<Self>();

    fn report(&self, details: bool, json: bool) -> String {
        let backends = self.backends.read();
        let ready = backends.values().filter(|backend| {
            let state = backend.director().tenant().state();
            matches!(state, State::Ready(_))
        });
        let (ready, of) = (ready.count(), backends.len());
        match (details, json) {
            (false, false) => report::summary(ready, of),
            (false, true) => report::summary_json(ready, of),
            // The tenants have lines of their own.
            (true, false) => String::new(),
            (true, true) => json!({ "ready": ready, "tenants": of }).to_string(),
        }
    }
}

impl Resolve for Director {
    fn resolve(&self, ctx: &mut Ctx<'_>) -> Result<VCL_BACKEND, VclError> {
        self.of_fetch(&Fetch::new(ctx)?).map_err(backend::refused)
    }
}

impl Vdi for Orders {
    const METHODS: &'static Methods = &vdi::answering::<Self>();

    fn report(&self, details: bool, json: bool) -> String {
        match (details, json) {
            (false, false) => "0/0\thealthy".into(),
            (false, true) => json!([0, 0, "healthy"]).to_string(),
            (true, false) => String::new(),
            (true, true) => json!({}).to_string(),
        }
    }
}

impl Answer for Orders {
    fn is_healthy(&self) -> bool {
        true
    }

    fn changed(&self) -> Option<SystemTime> {
        None
    }

    fn answer(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, VclError> {
        self.carry_out(fetch).map_err(backend::refused)
    }

    fn pipe(&self, _fetch: &mut Fetch<'_, '_>, _client: Client<'_>) -> Result<(), VclError> {
        Err(backend::refused("orders can't be piped".into()))
    }

    /// Whoever debugs a program sees what became of its response.
    fn has_failed_late(&self, _fetch: &mut Fetch<'_, '_>, _why: &Late) {}

    fn complaint(&self) -> VclError {
        backend::refused(format!("updates, rollbacks and debugging: {SICK}"))
    }
}

impl Orders {
    /// Carries out what needs a key: an update, a rollback, a request that is debugged.
    fn carry_out(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, String> {
        let target = Target::of(fetch).ok_or(backend::NO_TARGET)?;
        let name = target.tenant.as_deref().unwrap_or_default();
        let tenant = named(&self.backends, name);
        let asked = backend::shown(name);
        match &target.order {
            Some(Order::Upload(upload)) => upload::respond(fetch, tenant, &asked, upload),
            Some(Order::Debug(order)) => debug::respond(fetch, tenant, &asked, &target, order),
            None => Err(backend::NO_TARGET.into()),
        }
    }
}

/// Has a tenant's program loaded anew when somebody asks for it next. What comes of it is in the log.
fn renew_later(tenant: &Arc<Tenant>) {
    let of = Arc::downgrade(tenant);
    tenant.renew_later(move || {
        let (begun, done) = mpsc::channel();
        let Some(tenant) = of.upgrade() else {
            return done;
        };
        match Turn::take(&tenant) {
            Ok(turn) => {
                let then = move |_, _| drop(begun);
                let _ = update::begin(&tenant, Source::Anew, turn, then);
            }
            // It is being updated, perhaps by what was there before.
            Err(_) => renew_later(&tenant),
        }
        done
    });
}

/// The tenant of this name, or that a Host header names.
fn named(backends: &Backends, name: &[u8]) -> Option<Arc<Tenant>> {
    let name = name::of_host(name)?;
    let backends = backends.read();
    Some(backends.get(&*name)?.director().tenant().clone())
}

/// A pattern of VCL's.
fn regex(pattern: &[u8]) -> Result<Regex, String> {
    let pattern = str::from_utf8(pattern).map_err(|_| "the pattern is not UTF-8")?;
    RegexBuilder::new(pattern)
        .size_limit(MOST_PATTERN)
        .nest_limit(DEEPEST_PATTERN)
        .build()
        .map_err(|bad| format!("the pattern is none: {bad}"))
}
