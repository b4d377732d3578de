//! @NAME@: answers HTTP requests from inside a virtual machine. "make help" says what there is to do.

const std = @import("std");

// sdk/kvm_zig.c, around sdk/kvm_api.h.
extern fn kvm_serve() noreturn;
extern fn kvm_respond(status: i16, content_type: [*:0]const u8, body: [*]const u8, len: usize) noreturn;

var greeting: []const u8 = "";

/// Each request: runs in a copy-on-write fork of the program as it was when kvm_serve() was called.
export fn kvm_handle(url_ptr: [*]const u8, url_len: usize) void {
    const url = url_ptr[0..url_len];
    const hello = "/hello/";
    var text: [300]u8 = undefined;
    const name = if (std.mem.eql(u8, url, "/"))
        "World"
    else if (std.mem.startsWith(u8, url, hello))
        url[hello.len..@min(url.len, hello.len + 200)]
    else
        respond(404, "There is nothing here.\n");
    respond(200, std.fmt.bufPrint(&text, "{s}, {s}!\n", .{ greeting, name }) catch "too long\n");
}

fn respond(status: i16, text: []const u8) noreturn {
    kvm_respond(status, "text/plain", text.ptr, text.len);
}

/// The set-up: runs once.
pub fn main() void {
    greeting = "Hello";
    kvm_serve();
}
