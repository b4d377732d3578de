//! The command `forkvm`.
fn main() {
    println!("{:?}", forkvm::probe());
}
