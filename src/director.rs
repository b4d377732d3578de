//! A VCL's tenants, and how a fetch is answered by one of their programs.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use forkvm::Program;
use parking_lot::RwLock;
use varnish::vcl::{Buffer, Ctx, LogTag, VclBackend, VclError};

use crate::fetch::request::{Asked, BadBody};
use crate::fetch::response::Response;
use crate::fetch::{answer, plain};
use crate::file;
use crate::order::{Order, Target};
use crate::orders::update::{self, Source, Turn};
use crate::orders::{debug, upload, watch};
use crate::tenants::registry::Shared;
use crate::tenants::settings::{BadSetting, Settings};
use crate::tenants::tenant::{Release, State, Tenant};
use crate::tenants::version::Version;
use crate::tenants::{boot, name, queue, registry, report};
use crate::varnish::counters::count;
use crate::varnish::fetch::Fetch;
use crate::varnish::logging;

/// The one backend of a VCL.
#[derive(Default)]
pub struct Director {
    /// By name. Written in vcl_init only.
    tenants: RwLock<HashMap<String, Arc<Tenant>>>,
}

impl Director {
    /// Adds tenants, whose programs begin to boot: all, or none if a name is there twice.
    pub fn add_all(&self, tenants: Vec<Settings>) -> Result<(), BadSetting> {
        let mut here = self.tenants.write();
        let mut names = HashSet::new();
        for settings in &tenants {
            let name = &settings.config.name;
            if here.contains_key(name) || !names.insert(name) {
                let twice = "is given twice in this VCL".to_owned();
                return Err(BadSetting::new(name.as_bytes(), "name", twice));
            }
        }
        for settings in tenants {
            let tenant = match registry::share(settings) {
                Shared::Known(tenant) => tenant,
                Shared::New(tenant, file) => {
                    watch::start();
                    queue::enqueue(&tenant, file);
                    tenant
                }
            };
            here.insert(tenant.name().to_owned(), tenant);
        }
        Ok(())
    }

    /// Whether the tenant's program takes requests.
    pub fn is_ready(&self, name: &[u8]) -> bool {
        self.version(name).is_some()
    }

    /// Which program the tenant runs.
    pub fn version(&self, name: &[u8]) -> Option<Version> {
        match self.named(name)?.state() {
            State::Ready(release) => Some(release.version),
            _ => None,
        }
    }

    /// The tenant of this name.
    fn named(&self, name: &[u8]) -> Option<Arc<Tenant>> {
        let name = name::canonical(name)?;
        self.tenants.read().get(&*name).cloned()
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

    /// Gives the tenant the program that it had before; with a key, only if that is right.
    pub fn rollback(&self, name: &[u8], key: Option<&[u8]>) -> Result<(), String> {
        let tenant = self.named(name).ok_or("no such tenant")?;
        if let Some(key) = key {
            tenant
                .settings
                .key
                .check(key)
                .map_err(|denied| denied.to_string())?;
        }
        let turn = Turn::take(&tenant).map_err(|busy| busy.to_string())?;
        update::update(&tenant, Source::Rollback, turn)
            .map(|_| ())
            .map_err(|refused| refused.to_string())
    }

    /// Carries out what needs a key: an update, a rollback, a request that is debugged.
    fn carry_out(
        &self,
        order: &Order,
        target: &Target,
        fetch: &mut Fetch<'_, '_>,
    ) -> Result<Response, String> {
        let name = target.tenant.as_deref().unwrap_or_default();
        // A Host header may have a port.
        let tenant = self
            .named(name)
            .or_else(|| self.named(name::of_host(name)?.as_bytes()));
        let asked = shown(name);
        match order {
            Order::Upload(upload) => upload::respond(fetch, tenant, &asked, upload),
            Order::Debug(debug) => debug::respond(fetch, tenant, &asked, target, debug),
        }
    }

    /// All tenants, in alphabetical order.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        let mut tenants: Vec<_> = self.tenants.read().values().cloned().collect();
        tenants.sort_by(|a, b| a.name().cmp(b.name()));
        tenants
    }

    /// The tenant that a fetch is for.
    fn tenant(&self, given: Option<&[u8]>, fetch: &Fetch<'_, '_>) -> Result<Arc<Tenant>, String> {
        let asked = given.or_else(|| fetch.header("host")).unwrap_or_default();
        let name = match given {
            Some(name) => name::canonical(name),
            None => name::of_host(asked),
        };
        let tenants = self.tenants.read();
        name.and_then(|name| tenants.get(&*name).cloned())
            .ok_or_else(|| {
                format!(
                    "no tenant \"{}\" among the {} of this VCL",
                    shown(asked),
                    tenants.len()
                )
            })
    }

    /// Answers a fetch. An error is a failed fetch, a failed guest is a response.
    fn respond(&self, fetch: &mut Fetch<'_, '_>) -> Result<Response, String> {
        let target = fetch
            .target()
            .ok_or("kvm.backend() was not called in this task, or before a rollback")?;
        if let Some(order) = &target.order {
            return self.carry_out(order, &target, fetch);
        }
        let tenant = self.tenant(target.tenant.as_deref(), fetch)?;
        let name = tenant.name();

        let start = Instant::now();
        let limit = tenant.settings.config.limits.max_request_time;
        let Release { program, version } = tenant
            .program(start + limit)
            .map_err(|not_ready| format!("tenant {name}: {not_ready}"))?;
        // Reading the body does not count: a slow upload is not the guest's, and Varnish has its own timeouts for it.
        let time = limit.saturating_sub(start.elapsed());

        let url = target.url.clone().unwrap_or_else(|| fetch.url());
        let asked = match Asked::read(fetch, url, target.arg.clone(), &tenant) {
            Ok(asked) => asked,
            Err(bad) => return refuse_body(fetch, name, &bad),
        };
        let head = asked.is_head();
        let result = answer::ask(fetch, &tenant, &program, &asked, time, Program::answer);
        drop(asked);
        let response = match result {
            Ok(answer) => {
                let shown = tenant.settings.values.version_header.then_some(version);
                answer::hand_over(fetch, &tenant, answer, head, shown)
            }
            Err(failure) if failure.is_busy() => plain::busy(fetch),
            Err(_) => plain::failed(fetch),
        };
        response.map_err(|error| format!("tenant {name}: {error}"))
    }
}

impl VclBackend<Response> for Director {
    fn get_response(&self, ctx: &mut Ctx<'_>) -> Result<Option<Response>, VclError> {
        let mut fetch = Fetch::new(ctx)?;
        let response = self.respond(&mut fetch).map_err(|reason| {
            count(|counters| &counters.refused);
            VclError::new(format!("kvm: {reason}"))
        })?;
        Ok(Some(response))
    }

    fn report(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        // A failed write shows as an incomplete list; there is nothing to do about it.
        let _ = vsb.write(&report::short(&self.tenants()));
    }

    fn report_details(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::details(&self.tenants()));
    }

    fn report_json(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::short_json(&self.tenants()));
    }

    fn report_details_json(&self, _ctx: &mut Ctx<'_>, vsb: &mut Buffer<'_>) {
        let _ = vsb.write(&report::details_json(&self.tenants()));
    }
}

/// A name that somebody sent, for a message.
fn shown(name: &[u8]) -> String {
    name[..name.len().min(100)].escape_ascii().to_string()
}

fn refuse_body(fetch: &mut Fetch<'_, '_>, name: &str, bad: &BadBody) -> Result<Response, String> {
    logging::log_in(fetch, LogTag::Error, name, &bad.to_string());
    let response = match bad {
        BadBody::TooLarge => plain::too_large(fetch),
        BadBody::NoRoom => {
            count(|counters| &counters.busy);
            plain::busy(fetch)
        }
        BadBody::Unreadable(_) => return Err(format!("tenant {name}: {bad}")),
    };
    response.map_err(|error| format!("tenant {name}: {error}"))
}
