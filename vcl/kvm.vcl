# Everything by headers: requests to the tenants' programs, updates, rollbacks and debugging. A VCL that uses it needs
# three lines, and no tenant is updated or debugged who has no key:
#
#     vcl 4.1;
#     include "kvm.vcl";
#     sub vcl_init { kvm.tenant("xpizza.com", "/srv/tenants/xpizza", update_key_file = "/etc/varnish/xpizza.key"); }
#
# The Host header tells the tenant; a host that is none gets a 404. A site that has backends of its own includes
# kvm_subs.vcl instead, and calls its subroutines.
#
#     curl -H 'X-LiveUpdate: KEY' --data-binary @program http://xpizza.com/        a new program
#     curl -H 'X-LiveUpdate: KEY' http://xpizza.com/                               which programs there are
#     curl -H 'X-LiveRollback: KEY' -X POST http://xpizza.com/                     the one before again
#
# (forkvm upload, versions and rollback do the same without sending the key, which would be in Varnish's log: they sign
# with it), and where kvm.tenant() has allow_debug = true:
#
#     curl -H 'X-DebugKey: KEY' http://xpizza.com/any/url                          this request waits for gdb
#     curl -H 'X-LiveDebug: KEY' --data-binary @program http://xpizza.com/any/url  a GET in this program waits for gdb
#
# X-PostKey is another name of X-LiveUpdate. What the subroutines here do comes before what those of the same name in
# your VCL do: requests with a key end here, all others go on there and in Varnish's own VCL, so programs' answers are
# cached as usual.

include "./kvm_subs.vcl";

backend default none;

sub vcl_recv {
    call kvm_recv;
}

sub vcl_miss {
    call kvm_miss;
}

sub vcl_pass {
    call kvm_pass;
}

sub vcl_synth {
    call kvm_synth;
}

# What your VCL pipes, such as WebSockets: return (pipe).
sub vcl_pipe {
    set bereq.backend = kvm.backend();
}

sub vcl_backend_fetch {
    call kvm_backend_fetch;
    if (!kvm.has_tenant(bereq.http.Host)) {
        return (error(404, "No such tenant"));
    }
}
