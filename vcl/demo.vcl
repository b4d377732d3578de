# The demo: tenants, each answered by its own program in its own KVM guest.
# scripts/demo.sh puts the programs' folder in place of @GUESTS@, and one where
# updates are kept in place of @STATE@.
vcl 4.1;

import kvm;

# Every request goes to a tenant's program; there is no other backend.
backend default none;

sub vcl_init {
    kvm.tenant("tpizza.com", "@GUESTS@/crash", max_request_time = 1s);
    kvm.tenant("upizza.com", "@GUESTS@/live", state_dir = "@STATE@");
    kvm.tenant("vpizza.com", "@GUESTS@/page");
    kvm.tenant("wpizza.com", "@GUESTS@/hello");
    kvm.tenant("xpizza.com", "@GUESTS@/mandelbrot");
    kvm.tenant("ypizza.com", "@GUESTS@/counter");
    kvm.tenant("zpizza.com", "@GUESTS@/sqlite");
}

sub vcl_recv {
    set req.http.Host = regsub(req.http.Host, ":[0-9]+$", "");
    set req.http.X-Base = "/";

    # A browser that has only an address sees vpizza.com at /, and each tenant
    # under its letter: /x/ is / of xpizza.com. The page of vpizza.com links to
    # these.
    if (!req.http.Host || req.http.Host ~ "(?i)^(vpizza\.com|localhost|[0-9.]+|\[.*\])?$") {
        set req.http.Host = "vpizza.com";
        if (req.url ~ "^/[t-z](/|\?|$)") {
            set req.http.Host = regsub(req.url, "^/([t-z]).*", "\1pizza.com");
            set req.http.X-Base = regsub(req.url, "^/([t-z]).*", "/\1/");
            set req.url = regsub(req.url, "^/[t-z]/?", "/");
        }
    }

    if (!kvm.has_tenant(req.http.Host)) {
        return (synth(404, "No such tenant"));
    }

    # The buttons of upizza.com's page. In production an update needs a key and
    # comes with its program (kvm.vcl); here it is a file.
    if (req.http.Host == "upizza.com") {
        set req.http.X-Version = kvm.program_version("upizza.com");
        if (req.method == "POST" && req.url == "/update") {
            if (kvm.live_update_file("upizza.com", "@GUESTS@/live-2")) {
                return (synth(303));
            }
            return (synth(503, "Not updated, see the log"));
        }
        if (req.method == "POST" && req.url == "/rollback") {
            if (kvm.rollback("upizza.com")) {
                return (synth(303));
            }
            return (synth(409, "There is nothing to go back to"));
        }
    }

    # The programs answer any URL, and most of them alike.
    if (req.url !~ "^/(\?|$)" && req.http.Host != "tpizza.com" &&
        !(req.http.Host == "zpizza.com" && req.url ~ "^/(count|pizza|order)(\?|$)")) {
        return (synth(404, "Not Found"));
    }

    # A cache would answer for the programs, and this is to show the programs.
    return (pass);
}

sub vcl_synth {
    if (resp.status == 303) {
        set resp.reason = "See Other";
        set resp.http.Location = req.http.X-Base + "?before=" + req.http.X-Version;
        return (deliver);
    }
}

sub vcl_backend_fetch {
    # The tenant by the Host header, the program's URL by bereq.url.
    set bereq.backend = kvm.backend();
}
