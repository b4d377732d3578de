# Everything by headers: requests to the tenants' programs, updates and rollbacks. A VCL that uses it needs three
# lines, and no tenant is updated who has no key:
#
#     vcl 4.1;
#     include "kvm.vcl";
#     sub vcl_init { kvm.tenant("xpizza.com", "/srv/tenants/xpizza", update_key_file = "/etc/varnish/xpizza.key"); }
#
# The Host header tells the tenant.
#
#     curl -H 'X-LiveUpdate: KEY' --data-binary @program http://xpizza.com/        a new program (or: forkvm upload)
#     curl -H 'X-LiveRollback: KEY' -X POST http://xpizza.com/                     the one before again
#
# X-PostKey is another name of X-LiveUpdate. What the subroutines here do comes before what those of the same name in
# your VCL do: requests for an update end here, all others go on there and in Varnish's own VCL, so programs' answers
# are cached as usual.

import kvm;

backend default none;

sub vcl_recv {
    if (req.http.X-PostKey && !req.http.X-LiveUpdate) {
        set req.http.X-LiveUpdate = req.http.X-PostKey;
    }
    unset req.http.X-PostKey;
    if (req.method == "POST" || req.method == "PUT") {
        if (req.http.X-LiveUpdate || req.http.X-LiveRollback) {
            return (pass);
        }
    }
    # Keys are nothing for programs.
    unset req.http.X-LiveUpdate;
    unset req.http.X-LiveRollback;
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
    # The tenant by the Host header, the program's URL by bereq.url.
    set bereq.backend = kvm.backend();
}
