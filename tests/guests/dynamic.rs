// A Rust program as rustc links it unless told otherwise: with the C library's shared objects.
fn main() {}
