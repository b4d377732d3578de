//! Zig: the Game of Life. /N is the Nth generation of what main() has set, as a picture (SVG). kvm_api.h has inline functions, which Zig
//! can't import: kvm_zig.c of `forkvm new` has those that are needed.

const std = @import("std");

extern fn kvm_serve() noreturn;
extern fn kvm_respond(status: i16, content_type: [*:0]const u8, body: [*]const u8, len: usize) noreturn;

const width = 96;
const height = 64;
const most_generations = 5000;
const Board = [height][width]bool;

var first: Board = undefined;
var picture: [width * height * 32 + 4096]u8 = undefined;

/// The edges meet: what leaves on one side comes in on the other.
fn next(board: *const Board) Board {
    var result: Board = undefined;
    for (0..height) |y| {
        for (0..width) |x| {
            var neighbours: u8 = 0;
            for ([_]usize{ height - 1, 0, 1 }) |dy| {
                for ([_]usize{ width - 1, 0, 1 }) |dx| {
                    if ((dy != 0 or dx != 0) and board[(y + dy) % height][(x + dx) % width]) neighbours += 1;
                }
            }
            result[y][x] = neighbours == 3 or (neighbours == 2 and board[y][x]);
        }
    }
    return result;
}

const Text = struct {
    len: usize = 0,

    fn add(self: *Text, comptime format: []const u8, arguments: anytype) void {
        const added = std.fmt.bufPrint(picture[self.len..], format, arguments) catch return;
        self.len += added.len;
    }
};

/// Each request: runs in a copy-on-write fork of the program as it was when kvm_serve() was called.
export fn kvm_handle(url_ptr: [*]const u8, url_len: usize) void {
    const url = url_ptr[0..url_len];
    const generation = std.fmt.parseInt(usize, if (url.len > 1) url[1..] else "0", 10) catch most_generations + 1;
    if (generation > most_generations) {
        const why = "/N, and N is 0 to 5000\n";
        kvm_respond(400, "text/plain", why, why.len);
    }
    var board = first;
    for (0..generation) |_| board = next(&board);

    var population: usize = 0;
    for (board) |row| {
        for (row) |cell| population += @intFromBool(cell);
    }
    var text = Text{};
    text.add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {d} {d}\">\n", .{ width, height });
    text.add("<title>Generation {d}, population {d}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#123\"/>\n<path fill=\"#7db\" d=\"", .{ generation, population });
    for (board, 0..) |row, y| {
        for (row, 0..) |cell, x| {
            if (cell) text.add("M{d} {d}h.9v.9h-.9z", .{ x, y });
        }
    }
    text.add("\"/>\n</svg>\n", .{});
    kvm_respond(200, "image/svg+xml", &picture, text.len);
}

/// The set-up: runs once. The R-pentomino, five cells that take 1,103 generations to settle where there is room.
pub fn main() void {
    first = std.mem.zeroes(Board);
    for ([_][2]usize{ .{ 1, 0 }, .{ 2, 0 }, .{ 0, 1 }, .{ 1, 1 }, .{ 1, 2 } }) |at| {
        first[height / 2 + at[1]][width / 2 + at[0]] = true;
    }
    kvm_serve();
}
