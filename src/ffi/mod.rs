//! The VMOD's interface to Varnish: the functions behind vmod.vcc, and the table that varnishd finds them by.
//!
//! Every function here is called by C. Each turns its arguments into Rust's terms, calls safe Rust, and lets no panic
//! out.

use std::ffi::{CStr, OsStr, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Once};
use std::time::Duration;

use varnish::ffi::{VCL_BACKEND, VCL_BOOL, VCL_BYTES, VCL_INT, VCL_STRING, VclEvent};
use varnish::ffi::{VMOD_PRIV_METHODS_MAGIC, vmod_data, vmod_priv, vmod_priv_methods, vrt_ctx};
use varnish::vcl::{Ctx, LogTag, VclError};

use crate::director::Director;
use crate::order::{Debug, Order, Target, Upload};
use crate::tenants::fetches;
use crate::tenants::registry;
use crate::tenants::settings::{Given, Settings};
use crate::varnish::panics::{self, guard};
use crate::varnish::{counters, fetch, logging};
use crate::vdi::Registered;
use arguments::{bytes, given, given_program, given_server, sent, text};
use call::{NO_STRING, call, is_so, registered, run, said, string_or_none};
use direct::{chain, synth, to_string};
use documents::{configure, embed_tenants, fetch_tenants, library, load_tenants, main_arguments};
use programs::{invalidate_programs, start};
use shown::synth_stats;

mod arguments;
mod call;
mod direct;
mod documents;
mod programs;
mod shown;
mod vcc_if;

use vcc_if::{
    Vmod_vmod_kvm_Func, arg_vmod_kvm_backend, arg_vmod_kvm_rollback, arg_vmod_kvm_server,
    arg_vmod_kvm_tenant,
};

/// The version as a C string.
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no NUL"),
    };

/// How long varnishd's child waits for storages at its end, and no longer than half of the `cli_timeout` that it has for that.
const SAVING: Duration = Duration::from_secs(30);

/// The functions. Their types are those of vmod.vcc, so the compiler checks that they fit.
static FUNCTIONS: Vmod_vmod_kvm_Func = Vmod_vmod_kvm_Func {
    _event: Some(event),
    f_tenant: Some(tenant),
    f_server: Some(server),
    f_load_tenants: Some(load_tenants),
    f_embed_tenants: Some(embed_tenants),
    f_fetch_tenants: Some(fetch_tenants),
    f_backend: Some(backend),
    f_vm_backend: Some(vm_backend),
    f_library: Some(library),
    f_configure: Some(configure),
    f_main_arguments: Some(main_arguments),
    f_start: Some(start),
    f_invalidate_programs: Some(invalidate_programs),
    f_program: Some(program),
    f_chain: Some(chain),
    f_to_string: Some(to_string),
    f_synth: Some(synth),
    f_live_update: Some(live_update),
    f_live_rollback: Some(live_rollback),
    f_check_key: Some(check_key),
    f_vm_debug_backend: Some(vm_debug_backend),
    f_live_debug: Some(live_debug),
    f_live_update_file: Some(live_update_file),
    f_rollback: Some(rollback),
    f_program_version: Some(program_version),
    f_stats: Some(stats),
    f_synth_stats: Some(synth_stats),
    f_tenant_is_ready: Some(tenant_is_ready),
    f_has_room: Some(has_room),
    f_has_tenant: Some(has_tenant),
    f_init_self_requests: Some(init_self_requests),
    f_version: Some(version),
};

/// What varnishd's `import` looks up by name. build.rs says why it is not vmodtool.py's own.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static Vmod_kvm_Data: vmod_data = vmod_data {
    // `$ABI strict`: both are zero, and `abi` decides.
    vrt_major: 0,
    vrt_minor: 0,
    file_id: vcc_if::FILE_ID.as_ptr(),
    name: c"kvm".as_ptr(),
    func_name: c"Vmod_vmod_kvm_Func".as_ptr(),
    func: (&raw const FUNCTIONS).cast(),
    func_len: size_of::<Vmod_vmod_kvm_Func>() as c_int,
    proto: ptr::null(),
    json: vcc_if::Vmod_Json.as_ptr(),
    abi: varnish::ffi::VMOD_ABI_Version.as_ptr(),
    vcs: vcc_if::VCS.as_ptr(),
    version: VERSION.as_ptr(),
};

/// Each VCL's director is kept in the VCL's private pointer, and dropped when the VCL is discarded.
static VCL_METHODS: vmod_priv_methods = vmod_priv_methods {
    magic: VMOD_PRIV_METHODS_MAGIC,
    type_: c"kvm".as_ptr(),
    fini: Some(discard),
};

/// A VCL is loaded, warm, cold or discarded.
unsafe extern "C" fn event(ctx: *const vrt_ctx, vcl: *mut vmod_priv, event: VclEvent) -> c_int {
    // Warm and cold need nothing: idle forks are freed by time, whatever the VCL's temperature.
    if event != VclEvent::Load {
        return 0;
    }
    let done = run(ctx, || {
        // SAFETY: varnishd calls us with a context and with this VCL's private pointer, which is empty at load.
        let (ctx, vcl) = unsafe { (Ctx::from_ptr(ctx), vcl.as_mut().ok_or("no PRIV_VCL")?) };
        panics::install_hook();
        counters::publish();
        save_at_exit();
        let registered = Director::register(&ctx, call::load_waits())?;
        // SAFETY: the methods are those of this type.
        unsafe { vcl.put(Box::new(registered), &VCL_METHODS) };
        Ok(())
    });
    done.map_or(1, |()| 0)
}

/// Has storages save when varnishd's child ends, which no event tells of. This file stays loaded (build.rs).
fn save_at_exit() {
    extern "C" fn at_exit() {
        let _ = guard(|| forkvm::save_storages(SAVING.min(call::load_waits())));
    }
    static ONCE: Once = Once::new();
    // SAFETY: the function stays where it is, and lets no panic out.
    ONCE.call_once(|| match unsafe { libc::atexit(at_exit) } {
        0 => {}
        _ => logging::write(
            LogTag::Error,
            "kvm: storages will not save when varnishd stops",
        ),
    });
}

/// A VCL is discarded, after its last fetch.
unsafe extern "C" fn discard(ctx: *const vrt_ctx, vcl: *mut std::ffi::c_void) {
    let _ = guard(|| {
        // SAFETY: what event() has put there.
        unsafe { vmod_priv::on_fini::<Registered<Director>>(ctx, vcl) };
        registry::prune();
    });
}

/// `kvm.tenant()`
unsafe extern "C" fn tenant(ctx: *const vrt_ctx, args: *mut arg_vmod_kvm_tenant) {
    run(ctx, || {
        // SAFETY: VCL calls us with arguments as in vmod.vcc, whose strings live as long as the call.
        unsafe {
            let args = args.as_ref().ok_or("no arguments")?;
            add(ctx, args.arg1, &given_program(args))
        }
    });
}

/// `kvm.server()`
unsafe extern "C" fn server(ctx: *const vrt_ctx, args: *mut arg_vmod_kvm_server) {
    run(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let args = args.as_ref().ok_or("no arguments")?;
            add(ctx, args.arg1, &given_server(args))
        }
    });
}

/// Adds a tenant to a VCL's.
///
/// SAFETY: `ctx` and `vcl` are what varnishd called us with.
unsafe fn add(ctx: *const vrt_ctx, vcl: *mut vmod_priv, given: &Given<'_>) -> Result<(), VclError> {
    let settings = Settings::check(given).map_err(|bad| format!("kvm.{bad}"))?;
    // SAFETY: as the caller promises.
    let (director, ctx) = unsafe { (registered(vcl)?.director(), Ctx::from_ptr(ctx)) };
    let added = director.add_all(&ctx, vec![settings]);
    Ok(added.map_err(|bad| format!("kvm.{bad}"))?)
}

/// `kvm.backend()`
unsafe extern "C" fn backend(ctx: *const vrt_ctx, args: *mut arg_vmod_kvm_backend) -> VCL_BACKEND {
    // SAFETY: as in tenant().
    let Some(args) = (unsafe { args.as_ref() }) else {
        let none = run(ctx, || Err("no arguments".into()));
        return none.unwrap_or(VCL_BACKEND(ptr::null()));
    };
    let given = |valid: i8, value: &VCL_STRING| {
        // SAFETY: VCL called us with the string.
        (valid != 0).then(|| unsafe { text(VCL_STRING(value.0)) })
    };
    let target = || Target {
        tenant: given(args.valid_tenant, &args.tenant),
        url: given(args.valid_url, &args.url),
        arg: given(args.valid_arg, &args.arg).unwrap_or_default(),
        ..Target::default()
    };
    // SAFETY: varnishd called us with them.
    unsafe { aim(ctx, args.arg1, target) }
}

/// `kvm.vm_backend()`
unsafe extern "C" fn vm_backend(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    url: VCL_STRING,
    arg: VCL_STRING,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || Target {
            tenant: Some(text(tenant)),
            url: Some(text(url)),
            arg: text(arg),
            ..Target::default()
        })
    }
}

/// `kvm.program()`
unsafe extern "C" fn program(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    program: VCL_STRING,
    arg: VCL_STRING,
    config: VCL_STRING,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || Target {
            tenant: Some(text(program)),
            url: given(arg),
            arg: text(config),
            ..Target::default()
        })
    }
}

/// `kvm.live_update()`
unsafe extern "C" fn live_update(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    key: VCL_STRING,
    max_size: VCL_BYTES,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || {
            let order = Upload::Update {
                key: sent(key),
                max_size: usize::try_from(max_size.0).unwrap_or(0),
            };
            ordered(tenant, Order::Upload(order))
        })
    }
}

/// `kvm.live_rollback()`
unsafe extern "C" fn live_rollback(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    key: VCL_STRING,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || {
            let order = Upload::Rollback { key: sent(key) };
            ordered(tenant, Order::Upload(order))
        })
    }
}

/// `kvm.check_key()`
unsafe extern "C" fn check_key(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    key: VCL_STRING,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let name = bytes(tenant).unwrap_or_default();
            let key = bytes(key).unwrap_or_default();
            let method = fetch::method_of(&Ctx::from_ptr(ctx));
            let checked = registered(vcl)?
                .director()
                .check_key(name, key, method.as_deref());
            Ok(said(ctx, &call("check_key", name), checked))
        }
    })
}

/// `kvm.vm_debug_backend()`
unsafe extern "C" fn vm_debug_backend(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    key: VCL_STRING,
    url: VCL_STRING,
    arg: VCL_STRING,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || {
            let order = Debug {
                key: sent(key),
                upload: None,
            };
            Target {
                url: Some(text(url)),
                arg: text(arg),
                ..ordered(tenant, Order::Debug(order))
            }
        })
    }
}

/// `kvm.live_debug()`
unsafe extern "C" fn live_debug(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    key: VCL_STRING,
    max_size: VCL_BYTES,
) -> VCL_BACKEND {
    // SAFETY: varnishd called us with all of them.
    unsafe {
        aim(ctx, vcl, || {
            let order = Debug {
                key: sent(key),
                upload: Some(usize::try_from(max_size.0).unwrap_or(0)),
            };
            ordered(tenant, Order::Debug(order))
        })
    }
}

/// Keeps a target with the task of `ctx`, and gives the backend that fetches for it.
///
/// SAFETY: `ctx` and `vcl` are what varnishd called us with.
unsafe fn aim(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    target: impl FnOnce() -> Target,
) -> VCL_BACKEND {
    let done = run(ctx, || {
        // SAFETY: as the caller promises.
        unsafe {
            let mut ctx = Ctx::from_ptr(ctx);
            let chain = fetch::taken(&mut ctx).unwrap_or_default();
            let target = Target { chain, ..target() };
            fetch::keep(Arc::new(target), &mut ctx)?;
            Ok(registered(vcl)?.backend())
        }
    });
    done.unwrap_or(VCL_BACKEND(ptr::null()))
}

/// A target with an order.
///
/// SAFETY: VCL called us with the string.
unsafe fn ordered(tenant: VCL_STRING, order: Order) -> Target {
    Target {
        // SAFETY: as the caller promises.
        tenant: Some(unsafe { text(tenant) }),
        order: Some(order),
        ..Default::default()
    }
}

/// `kvm.live_update_file()`
unsafe extern "C" fn live_update_file(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
    file: VCL_STRING,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let name = bytes(tenant).unwrap_or_default();
            let file = OsStr::from_bytes(bytes(file).unwrap_or_default());
            let done = registered(vcl)?
                .director()
                .live_update_file(name, Path::new(file));
            Ok(said(ctx, &call("live_update_file", name), done))
        }
    })
}

/// `kvm.rollback()`
unsafe extern "C" fn rollback(ctx: *const vrt_ctx, args: *mut arg_vmod_kvm_rollback) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let args = args.as_ref().ok_or("no arguments")?;
            let name = bytes(VCL_STRING(args.tenant.0)).unwrap_or_default();
            let key =
                (args.valid_key != 0).then(|| bytes(VCL_STRING(args.key.0)).unwrap_or_default());
            let done = registered(args.arg1)?.director().rollback(name, key);
            Ok(said(ctx, &call("rollback", name), done))
        }
    })
}

/// `kvm.program_version()`
unsafe extern "C" fn program_version(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
) -> VCL_STRING {
    let done = run(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let name = bytes(tenant).unwrap_or_default();
            let Some(version) = registered(vcl)?.director().version(name) else {
                return Ok(NO_STRING);
            };
            let text = version.to_string().into_bytes();
            Ok(string_or_none(
                ctx,
                &call("program_version", name),
                Ok(text),
            ))
        }
    });
    done.unwrap_or(NO_STRING)
}

/// `kvm.stats()`
unsafe extern "C" fn stats(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    pattern: VCL_STRING,
    indentation: VCL_INT,
) -> VCL_STRING {
    /// More spaces than anybody wants.
    const MOST: usize = 16;
    let done = run(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let pattern = bytes(pattern).unwrap_or_default();
            let indentation = usize::try_from(indentation.0).ok().map(|n| n.min(MOST));
            let figures = registered(vcl)?.director().stats(pattern, indentation);
            Ok(string_or_none(ctx, &call("stats", pattern), figures))
        }
    });
    done.unwrap_or(NO_STRING)
}

/// `kvm.tenant_is_ready()`
unsafe extern "C" fn tenant_is_ready(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    name: VCL_STRING,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let director = registered(vcl)?.director();
            Ok(director.is_ready(&Ctx::from_ptr(ctx), bytes(name).unwrap_or_default()))
        }
    })
}

/// `kvm.has_tenant()`
unsafe extern "C" fn has_tenant(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    name: VCL_STRING,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let director = registered(vcl)?.director();
            Ok(director.has(bytes(name).unwrap_or_default()))
        }
    })
}

/// `kvm.has_room()`
unsafe extern "C" fn has_room(
    ctx: *const vrt_ctx,
    vcl: *mut vmod_priv,
    tenant: VCL_STRING,
) -> VCL_BOOL {
    is_so(ctx, || {
        // SAFETY: as in tenant().
        unsafe {
            let name = bytes(tenant).unwrap_or_default();
            let has_room = registered(vcl)?.director().has_room(name);
            Ok(said(ctx, &call("has_room", name), has_room))
        }
    })
}

/// `kvm.init_self_requests()`
unsafe extern "C" fn init_self_requests(
    ctx: *const vrt_ctx,
    socket: VCL_STRING,
    prefix: VCL_STRING,
    most: VCL_INT,
) {
    run(ctx, || {
        // SAFETY: as in tenant().
        let (socket, prefix) = unsafe { (bytes(socket), bytes(prefix).unwrap_or_default()) };
        fetches::init_own(socket.unwrap_or_default(), prefix, most.0)
            .map_err(|bad| format!("kvm.init_self_requests(): {bad}").into())
    });
}

/// `kvm.version()`
unsafe extern "C" fn version(_ctx: *const vrt_ctx) -> VCL_STRING {
    VCL_STRING(VERSION.as_ptr())
}
