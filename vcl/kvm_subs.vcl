# What tenants need of a VCL, as subroutines for a site that has backends of its own. Call all of them, each where its name
# says, before what your VCL does there. kvm_miss and kvm_pass too: without them a crowd at one tenant takes a thread of the
# others', and a VCL that leaves out a call is refused ("Unused sub kvm_pass"):
#
#     vcl 4.1;
#     include "kvm_subs.vcl";
#     backend shop { .host = "127.0.0.1"; .port = "8081"; }
#     sub vcl_init { kvm.tenant("xpizza.com", "/srv/tenants/xpizza", update_key_file = "/etc/varnish/xpizza.key"); }
#     sub vcl_recv { call kvm_recv; }
#     sub vcl_miss { call kvm_miss; }
#     sub vcl_pass { call kvm_pass; }
#     sub vcl_synth { call kvm_synth; }
#     sub vcl_backend_fetch { call kvm_backend_fetch; }
#
# Requests whose Host header names a tenant go to its program, all others where they would go without this. Where there
# are tenants only, kvm.vcl has the calls too. What the headers mean that have a key stands there.
#
# A tenant with a crowd, whose forks are all busy while as many requests as may be wait for one (max_queue), costs each of
# the others in the crowd a 503 with Retry-After, and Varnish one thread for a moment. What is in the cache is served all the
# same.

import kvm;

# Orders end vcl_recv here; requests go on after the call.
sub kvm_recv {
    # Which order it is, for the fetch. A client can send neither this nor have it left out: the fetch gets no header that
    # the client has named in Connection, but those that are set here.
    unset req.http.X-Kvm-Order;
    if (req.http.X-PostKey && !req.http.X-LiveUpdate) {
        set req.http.X-LiveUpdate = req.http.X-PostKey;
    }
    unset req.http.X-PostKey;
    # Of other methods than these only some are orders; the other headers are nothing then.
    if (req.method != "POST" && req.method != "PUT") {
        unset req.http.X-LiveRollback;
        unset req.http.X-LiveDebug;
        if (req.method != "GET") {
            unset req.http.X-LiveUpdate;
        }
    }
    if (req.http.X-LiveUpdate || req.http.X-LiveRollback || req.http.X-LiveDebug || req.http.X-DebugKey) {
        # Before a body comes, which may be with any method: nobody waits for what is sent along with a wrong key. Where
        # none can come, the fetch says more of what is wrong with the key.
        if (req.method == "POST" || req.method == "PUT" ||
            req.http.Content-Length || req.http.Transfer-Encoding || req.proto !~ "^HTTP/1") {
            if (!kvm.has_tenant(req.http.Host)) {
                return (synth(404, "No such tenant"));
            }
            if (req.http.X-LiveUpdate + req.http.X-LiveRollback + req.http.X-LiveDebug + req.http.X-DebugKey == "") {
                return (synth(401, "No key"));
            }
            if ((req.http.X-LiveUpdate && !kvm.check_key(req.http.Host, req.http.X-LiveUpdate)) ||
                (req.http.X-LiveRollback && !kvm.check_key(req.http.Host, req.http.X-LiveRollback)) ||
                (req.http.X-LiveDebug && !kvm.check_key(req.http.Host, req.http.X-LiveDebug)) ||
                (req.http.X-DebugKey && !kvm.check_key(req.http.Host, req.http.X-DebugKey))) {
                return (synth(403, "Wrong key"));
            }
        }
        if (req.http.X-LiveRollback) {
            set req.http.X-LiveRollback = req.http.X-LiveRollback;
            set req.http.X-Kvm-Order = "rollback";
            return (pass);
        }
        # By GET: which programs the tenant has.
        if (req.http.X-LiveUpdate) {
            set req.http.X-LiveUpdate = req.http.X-LiveUpdate;
            set req.http.X-Kvm-Order = "update";
            return (pass);
        }
        if (req.http.X-LiveDebug) {
            set req.http.X-LiveDebug = req.http.X-LiveDebug;
            set req.http.X-Kvm-Order = "live-debug";
            return (pass);
        }
        set req.http.X-DebugKey = req.http.X-DebugKey;
        set req.http.X-Kvm-Order = "debug";
        return (pass);
    }
}

# What is not in the cache, and would find neither a fork nor a place to wait for one.
sub kvm_miss {
    if (!kvm.has_room(req.http.Host)) {
        return (synth(503, "Tenant busy"));
    }
}

# The same; but orders wait for no fork.
sub kvm_pass {
    if (!req.http.X-Kvm-Order) {
        call kvm_miss;
    }
}

# The answers to those that were turned away.
sub kvm_synth {
    if (resp.reason == "Tenant busy") {
        set resp.reason = "Service Unavailable";
        set resp.http.Retry-After = "1";
        set resp.http.Content-Type = "text/plain; charset=utf-8";
        synthetic({"The service is busy, try again.
"});
        return (deliver);
    }
    if (resp.reason == "No such tenant" || resp.reason == "No key" || resp.reason == "Wrong key") {
        set resp.http.Connection = "close";
        set resp.http.Content-Type = "application/json";
        if (resp.status == 404) {
            synthetic({"{ "error": "there is no such tenant" }
"});
        } else if (resp.status == 401) {
            set resp.http.WWW-Authenticate = "X-LiveUpdate";
            synthetic({"{ "error": "no key was sent" }
"});
        } else {
            synthetic({"{ "error": "the key is wrong, or does not do, or the tenant has none" }
"});
        }
        return (deliver);
    }
}

# Sets bereq.backend for tenants and for orders, and leaves it as it is for all else. What kvm_recv passed as an order is one
# here, with a key or without.
sub kvm_backend_fetch {
    if (bereq.http.X-Kvm-Order == "rollback") {
        set bereq.backend = kvm.live_rollback(bereq.http.Host, bereq.http.X-LiveRollback);
        return (fetch);
    }
    if (bereq.http.X-Kvm-Order == "update") {
        set bereq.backend = kvm.live_update(bereq.http.Host, bereq.http.X-LiveUpdate);
        return (fetch);
    }
    if (bereq.http.X-Kvm-Order == "live-debug") {
        set bereq.backend = kvm.live_debug(bereq.http.Host, bereq.http.X-LiveDebug);
        return (fetch);
    }
    if (bereq.http.X-Kvm-Order == "debug") {
        set bereq.backend = kvm.vm_debug_backend(bereq.http.Host, bereq.http.X-DebugKey, bereq.url);
        return (fetch);
    }
    if (kvm.has_tenant(bereq.http.Host)) {
        # The tenant by the Host header, the program's URL by bereq.url.
        set bereq.backend = kvm.backend();
    }
}
