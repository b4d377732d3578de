# The demo: five tenants, each answered by its own program in its own KVM guest.
# scripts/demo.sh puts the programs' folder in place of @GUESTS@.
vcl 4.1;

import kvm;

# Every request goes to a tenant's program; there is no other backend.
backend default none;

sub vcl_init {
    kvm.tenant("vpizza.com", "@GUESTS@/page");
    kvm.tenant("wpizza.com", "@GUESTS@/hello");
    kvm.tenant("xpizza.com", "@GUESTS@/mandelbrot");
    kvm.tenant("ypizza.com", "@GUESTS@/counter");
    kvm.tenant("zpizza.com", "@GUESTS@/sqlite");
}

sub vcl_recv {
    set req.http.Host = regsub(req.http.Host, ":[0-9]+$", "");

    # A browser that has only an address sees vpizza.com at /, and each tenant
    # under its first letter: /x/1 is /1 of xpizza.com. The page of vpizza.com
    # links to these.
    if (!req.http.Host || req.http.Host ~ "(?i)^(vpizza\.com|localhost|[0-9.]+|\[.*\])?$") {
        set req.http.Host = "vpizza.com";
        if (req.url ~ "^/[v-z](/|\?|$)") {
            set req.http.Host = regsub(req.url, "^/([v-z]).*", "\1pizza.com");
            set req.url = regsub(req.url, "^/[v-z]/?", "/");
        }
    }

    # A cache would answer for the programs, and this is to show the programs.
    return (pass);
}

sub vcl_backend_fetch {
    # The tenant by the Host header, the program's URL by bereq.url.
    set bereq.backend = kvm.backend();
}
