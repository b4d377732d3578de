//! The file that a program's storage keeps its state in: one of the host's, read and written as a whole by whoever has the program.
//! The program sees it at [`PATH`], and changes a copy in memory, which becomes the file when it closes or synchronises it.

use std::io;

use rustix::io::Errno;

use crate::linux::abi::Value;
use crate::linux::files::copies;
use crate::linux::files::fds::{self, Files, Kind, O_CREAT, O_EXCL, O_TRUNC};
use crate::linux::files::open_file::{How, OpenFile};
use crate::linux::files::overlay::content::cost;
use crate::linux::setup::{StateFile, StateRight};

/// Where the program sees it.
pub const PATH: &str = "/kvm-state";

impl StateFile {
    /// Gives a machine this right, with the memory that it takes.
    pub fn allow(&self, files: &mut Files, right: StateRight) {
        let copies = |right: StateRight| cost(self.most).saturating_mul(right.copies());
        let (limit, _) = files.overlay.bytes();
        let others = limit.saturating_sub(copies(files.state));
        files
            .overlay
            .set_limit(others.saturating_add(copies(right)));
        files.state = right;
    }

    /// open(2) of it.
    pub fn open(&self, files: &mut Files, how: How, close_on_exec: bool) -> Value {
        match files.state {
            StateRight::None => return Err(Errno::ACCESS),
            StateRight::Read if how.writes() => return Err(Errno::ACCESS),
            StateRight::Read | StateRight::Write => {}
        }
        let content = self.store.load(self.most).map_err(errno)?;
        match &content {
            None if !how.has(O_CREAT) => return Err(Errno::NOENT),
            Some(_) if how.has(O_CREAT) && how.has(O_EXCL) => return Err(Errno::EXIST),
            Some(content) if content.len() as u64 > self.most => return Err(Errno::FBIG),
            _ => {}
        }
        let id = copies::make_nameless(files, 0o600)?;
        let opened = match content {
            Some(content) if !how.has(O_TRUNC) => fill(files, id, &content),
            _ => Ok(()),
        }
        .and_then(|()| {
            let kind = Kind::Node(id, PATH.as_bytes().into());
            let number = files.add(OpenFile::new(kind, how.0), close_on_exec)?;
            i64::try_from(number).map_err(|_| Errno::MFILE)
        });
        if opened.is_err() {
            files.overlay.tree_mut().drop_unused(id);
        }
        opened
    }

    /// Puts what a descriptor has in the place of the file, if it is one of that. To be called before it is closed.
    pub fn store(&self, files: &Files, fd: u64) -> Result<(), Errno> {
        // Of the storage only, whatever others have at that path.
        if files.state != StateRight::Write {
            return Ok(());
        }
        let Ok(file) = files.get(fd) else {
            return Ok(());
        };
        let Kind::Node(id, path) = &file.kind else {
            return Ok(());
        };
        if &**path != PATH.as_bytes() || !file.writable() {
            return Ok(());
        }
        let size = files.overlay.size(*id)?;
        if size > self.most {
            return Err(Errno::FBIG);
        }
        let len = usize::try_from(size).map_err(|_| Errno::FBIG)?;
        let mut content = Vec::new();
        content.try_reserve_exact(len).map_err(|_| Errno::NOMEM)?;
        content.resize(len, 0);
        let mut done = 0;
        while done < len {
            match files.overlay.read(*id, done as u64, &mut content[done..])? {
                0 => break,
                n => done += n,
            }
        }
        self.store.save(&content).map_err(errno)
    }
}

/// Whether a path is that of the file.
pub fn is_at(path: &[u8]) -> bool {
    path == PATH.as_bytes()
}

fn fill(files: &mut Files, id: u64, content: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < content.len() {
        match files.overlay.write(id, done as u64, &content[done..])? {
            0 => return Err(Errno::NOSPC),
            n => done += n,
        }
    }
    Ok(())
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// close(2) with what is stored by it. The descriptor is closed in any case.
pub fn close(state: Option<&StateFile>, files: &mut Files, fd: u64) -> Value {
    let stored = state.map_or(Ok(()), |state| state.store(files, fd));
    let closed = fds::close(files, fd)?;
    stored.map(|()| closed)
}
