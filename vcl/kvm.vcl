# Everything by headers: requests to the tenants' programs, updates, rollbacks and debugging. A VCL that uses it needs
# three lines, and no tenant is updated or debugged who has no key:
#
#     vcl 4.1;
#     include "kvm.vcl";
#     sub vcl_init { kvm.tenant("xpizza.com", "/srv/tenants/xpizza", update_key_file = "/etc/varnish/xpizza.key"); }
#
# The Host header tells the tenant.
#
#     curl -H 'X-LiveUpdate: KEY' --data-binary @program http://xpizza.com/        a new program (or: forkvm upload)
#     curl -H 'X-LiveUpdate: KEY' http://xpizza.com/                               which programs there are
#     curl -H 'X-LiveRollback: KEY' -X POST http://xpizza.com/                     the one before again
#
# and where kvm.tenant() has allow_debug = true:
#
#     curl -H 'X-DebugKey: KEY' http://xpizza.com/any/url                          this request waits for gdb
#     curl -H 'X-LiveDebug: KEY' --data-binary @program http://xpizza.com/any/url  a GET in this program waits for gdb
#
# X-PostKey is another name of X-LiveUpdate. What the subroutines here do comes before what those of the same name in
# your VCL do: requests with a key end here, all others go on there and in Varnish's own VCL, so programs' answers are
# cached as usual.

import kvm;

backend default none;

sub vcl_recv {
    if (req.http.X-PostKey && !req.http.X-LiveUpdate) {
        set req.http.X-LiveUpdate = req.http.X-PostKey;
    }
    unset req.http.X-PostKey;
    # Which programs the tenant has.
    if (req.method == "GET" && req.http.X-LiveUpdate) {
        return (pass);
    }
    if (req.method == "POST" || req.method == "PUT") {
        # Before the body comes: nobody waits for what is sent along with a wrong key.
        if ((req.http.X-LiveUpdate && !kvm.check_key(req.http.Host, req.http.X-LiveUpdate)) ||
            (req.http.X-LiveRollback && !kvm.check_key(req.http.Host, req.http.X-LiveRollback)) ||
            (req.http.X-LiveDebug && !kvm.check_key(req.http.Host, req.http.X-LiveDebug))) {
            return (synth(403, "Wrong key"));
        }
        if (req.http.X-LiveUpdate || req.http.X-LiveRollback || req.http.X-LiveDebug) {
            return (pass);
        }
    }
    # Keys are nothing for programs.
    unset req.http.X-LiveUpdate;
    unset req.http.X-LiveRollback;
    unset req.http.X-LiveDebug;
    if (req.http.X-DebugKey) {
        return (pass);
    }
}

sub vcl_synth {
    if (resp.status == 403 && resp.reason == "Wrong key") {
        set resp.http.Connection = "close";
        set resp.http.Content-Type = "application/json";
        synthetic({"{ "error": "the key is wrong, or this host has none" }
"});
        return (deliver);
    }
}

sub vcl_backend_fetch {
    if (bereq.http.X-LiveRollback) {
        set bereq.backend = kvm.live_rollback(bereq.http.Host, bereq.http.X-LiveRollback);
        return (fetch);
    }
    if (bereq.http.X-LiveUpdate) {
        set bereq.backend = kvm.live_update(bereq.http.Host, bereq.http.X-LiveUpdate);
        return (fetch);
    }
    if (bereq.http.X-LiveDebug) {
        set bereq.backend = kvm.live_debug(bereq.http.Host, bereq.http.X-LiveDebug);
        return (fetch);
    }
    if (bereq.http.X-DebugKey) {
        set bereq.backend = kvm.vm_debug_backend(bereq.http.Host, bereq.http.X-DebugKey, bereq.url);
        return (fetch);
    }
    # The tenant by the Host header, the program's URL by bereq.url.
    set bereq.backend = kvm.backend();
}
