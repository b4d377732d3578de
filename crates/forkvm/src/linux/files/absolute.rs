//! Path names of the program.

/// A path of the program: absolute, without `.`, `..` or empty names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absolute {
    names: Vec<Vec<u8>>,
    /// It ended with a slash or a dot, so only a folder will do.
    pub folder: bool,
}

impl Absolute {
    /// The path that `path` means where `base` is the working directory.
    ///
    /// `..` is taken away by name before symbolic links are followed. That is not what Linux does where a name
    /// before it is a symbolic link to a folder elsewhere; what it names stays within what is allowed either way.
    pub fn new(base: &[u8], path: &[u8]) -> Self {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let start: &[u8] = if path.starts_with(b"/") { b"" } else { base };
        for name in start
            .split(|&byte| byte == b'/')
            .chain(path.split(|&byte| byte == b'/'))
        {
            match name {
                b"" | b"." => {}
                b".." => {
                    names.pop();
                }
                name => names.push(name.to_vec()),
            }
        }
        let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        Self {
            names,
            folder: matches!(last, b"" | b"." | b".."),
        }
    }

    /// The same path, with the process's own folder of /proc by the name that it always has.
    pub fn with_self(mut self, pids: [i32; 2]) -> Self {
        if let [first, second, ..] = &mut self.names[..]
            && first == b"proc"
            && pids.iter().any(|pid| pid.to_string().as_bytes() == second)
        {
            *second = b"self".to_vec();
        }
        self
    }

    /// The path as text.
    pub fn text(&self) -> Vec<u8> {
        if self.names.is_empty() {
            b"/".to_vec()
        } else {
            self.names
                .iter()
                .flat_map(|name| [b"/", &name[..]].concat())
                .collect()
        }
    }

    /// True if it is `other` or beneath it.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.names.starts_with(&other.names)
    }

    /// Its names.
    pub fn names(&self) -> &[Vec<u8>] {
        &self.names
    }

    /// How many names it has.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Its first names.
    pub fn prefix(&self, len: usize) -> Self {
        Self {
            names: self.names.get(..len).unwrap_or(&self.names).to_vec(),
            folder: false,
        }
    }

    /// The folder that it is in.
    pub fn parent(&self) -> Self {
        self.prefix(self.names.len().saturating_sub(1))
    }

    /// Its last name; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.names.last().map_or(b"", |name| name)
    }

    /// The path that it means where its first names, so many, are a symbolic link that leads to `to`.
    pub fn through_link(&self, len: usize, to: &[u8]) -> Self {
        let mut path = Self::new(&self.prefix(len.saturating_sub(1)).text(), to);
        let rest = self.names.get(len..).unwrap_or_default();
        if !rest.is_empty() {
            path.names.extend_from_slice(rest);
            path.folder = false;
        }
        path.folder |= self.folder;
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(base: &str, path: &str) -> String {
        String::from_utf8(Absolute::new(base.as_bytes(), path.as_bytes()).text()).unwrap()
    }

    #[test]
    fn paths_become_absolute() {
        assert_eq!(text("/srv/data", "a/./b//c"), "/srv/data/a/b/c");
        assert_eq!(text("/srv/data", "../x/"), "/srv/x");
        assert_eq!(text("/srv/data", "/../../etc"), "/etc");
        assert_eq!(text("/", ".."), "/");
        assert!(Absolute::new(b"/", b"x/").folder);
        assert!(Absolute::new(b"/", b"x/.").folder);
        assert!(!Absolute::new(b"/", b"x").folder);
    }
}
