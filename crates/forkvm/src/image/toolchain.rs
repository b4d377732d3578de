//! What a program was made with, where its language needs other advice than C.

/// True for a Rust program: its compiler names itself, or the library that came with it, in every one.
pub fn is_rust(file: &[u8]) -> bool {
    contains(file, b"rustc version ") || contains(file, b"/rustc/")
}

/// True for a Go program: its linker leaves a note with the build's name (cmd/go, "Build IDs").
pub fn is_go(file: &[u8]) -> bool {
    // Owner's name of four bytes, type 4.
    contains(file, b"\x04\0\0\0Go\0\0") || contains(file, b"\xff Go build ID: \"")
}

fn contains(file: &[u8], text: &[u8]) -> bool {
    file.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart() {
        let rust = b"\0GCC: (Debian)\0rustc version 1.90.0\0";
        let go = b"\x04\0\0\0S\0\0\0\x04\0\0\0Go\0\0abc";
        assert!(is_rust(rust) && !is_go(rust));
        assert!(is_go(go) && !is_rust(go));
        assert!(!is_rust(b"GCC: (Debian)") && !is_go(b""));
    }
}
