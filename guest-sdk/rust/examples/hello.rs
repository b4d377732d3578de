//! The smallest program in Rust.
use forkvm_guest::{serve, Response};

fn main() {
    serve(|request| Response::text(format!("Hello, {}!\n", request.url())));
}
