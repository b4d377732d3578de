//! Descriptors and the open files behind them: close(2), dup(2) and their relatives.
//!
//! As in Linux, duplicated descriptors share one open file with its offset and status flags. Those are kept here
//! and never in the host's descriptor, which all forks of a program share and which is only read at offsets
//! (`pread`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::{Value, count, flags, int};
use crate::linux::files::held_locks::{Locked, Locks};
use crate::linux::files::mirrors::Mirrors;
use crate::linux::files::overlay::Overlay;
use crate::linux::files::pipes::{Ends, Pipes};
use crate::linux::files::written::Written;
use crate::linux::net::epoll::Epolls;
use crate::linux::net::sockets::Sockets;
use crate::linux::setup::StateRight;
use crate::linux::tasks::task::FIRST_TID;
use crate::request::Stream;

pub use crate::linux::files::open_file::{
    Device, Kind, O_APPEND, O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_LARGEFILE, O_NOFOLLOW,
    O_NONBLOCK, O_PATH, O_TMPFILE, O_TRUNC, OpenFile, SETTABLE,
};

/// Most descriptors of one fork (`RLIMIT_NOFILE`); those of the host behind them are counted in `host_files`.
pub const MAX_DESCRIPTORS: usize = 256;
/// The same of a program with an address space.
pub const MORE_DESCRIPTORS: usize = 1024;

/// Most bytes of all texts that a fork has open, which the host holds for it.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// What a number stands for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Descriptor {
    /// The open file's place.
    pub file: usize,
    /// It would be closed at execve(2), which a program may ask for.
    pub close_on_exec: bool,
}

/// All descriptors of a program, its pipes and its working directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Files {
    descriptors: Vec<Option<Descriptor>>,
    open: Vec<Option<OpenFile>>,
    /// Pipes within the program.
    pub pipes: Pipes,
    /// What the program changed of its files.
    pub overlay: Overlay,
    /// Sockets within the program.
    pub sockets: Sockets,
    /// What is watched by epoll(7).
    pub epolls: Epolls,
    /// What it has locked of its files.
    pub locks: Locks,
    /// What it has written to the host's files.
    pub written: Written,
    /// Which of those it has mapped.
    pub mirrors: Mirrors,
    /// It has an address space: it may have sockets, and more of everything.
    unmodified: bool,
    /// The working directory: absolute and normalised.
    pub directory: Arc<[u8]>,
    /// The ids of the process, by which it finds itself in /proc.
    pub pids: [i32; 2],
    /// The missing `openat2` was already explained to the host.
    pub explained: bool,
    /// What the program may do with its state file.
    pub state: StateRight,
}

impl Clone for Files {
    fn clone(&self) -> Self {
        Self {
            descriptors: self.descriptors.clone(),
            open: self.open.clone(),
            pipes: self.pipes.clone(),
            overlay: self.overlay.clone(),
            sockets: self.sockets.clone(),
            epolls: self.epolls.clone(),
            locks: self.locks.clone(),
            written: self.written.clone(),
            mirrors: self.mirrors.clone(),
            unmodified: self.unmodified,
            directory: Arc::clone(&self.directory),
            pids: self.pids,
            explained: self.explained,
            state: self.state,
        }
    }

    fn clone_from(&mut self, source: &Self) {
        let Self {
            descriptors,
            open,
            pipes,
            overlay,
            sockets,
            epolls,
            locks,
            written,
            mirrors,
            unmodified,
            directory,
            pids,
            explained,
            state,
        } = self;
        descriptors.clone_from(&source.descriptors);
        open.clone_from(&source.open);
        pipes.clone_from(&source.pipes);
        overlay.clone_from(&source.overlay);
        sockets.clone_from(&source.sockets);
        epolls.clone_from(&source.epolls);
        locks.clone_from(&source.locks);
        written.clone_from(&source.written);
        mirrors.clone_from(&source.mirrors);
        *unmodified = source.unmodified;
        directory.clone_from(&source.directory);
        *pids = source.pids;
        *explained = source.explained;
        *state = source.state;
    }
}

impl Files {
    /// Standard input, output and error, and nothing else. The overlay may have so many bytes, and so many may be written to
    /// the host's files.
    pub fn new(directory: &[u8], overlay_bytes: u64, volume_bytes: u64) -> Self {
        let mut files = Self {
            descriptors: Vec::new(),
            open: Vec::new(),
            pipes: Pipes::default(),
            overlay: Overlay::new(overlay_bytes),
            sockets: Sockets::default(),
            epolls: Epolls::default(),
            locks: Locks::default(),
            written: Written::new(volume_bytes),
            mirrors: Mirrors::default(),
            unmodified: false,
            directory: directory.into(),
            pids: [FIRST_TID; 2],
            explained: false,
            state: StateRight::None,
        };
        let standard = [
            (Kind::Stdin, 0),
            (Kind::Output(Stream::Stdout), 1),
            (Kind::Output(Stream::Stderr), 1),
        ];
        for (kind, flags) in standard {
            // There is room for three.
            let _ = files.add(OpenFile::new(kind, flags), false);
        }
        files
    }

    /// Whether what was read from a snapshot can be.
    pub fn is_sound(&self) -> bool {
        let open = |of: &Descriptor| self.open_at(of.file).is_some();
        self.descriptors.len() <= MORE_DESCRIPTORS
            && self.descriptors.iter().flatten().all(open)
            && self.overlay.tree().is_sound()
            && self.epolls.is_sound()
    }

    /// They may from now on have and reach what these may.
    pub fn be_allowed_as(&mut self, other: Self) {
        self.overlay.be_limited_as(&other.overlay);
        self.written.be_limited_as(&other.written);
        self.sockets.be_allowed_as(other.sockets);
    }

    /// Files of the host have other devices and inodes by now than these.
    pub fn rename(&mut self, renamed: &BTreeMap<(u64, u64), (u64, u64)>) {
        self.locks.rename(renamed);
        self.mirrors.rename(renamed);
    }

    /// They are those of a program with an address space.
    pub fn of_unmodified(&mut self) {
        self.unmodified = true;
    }

    /// Whether the program may have sockets.
    pub fn has_sockets(&self) -> bool {
        self.unmodified
    }

    /// Most descriptors that the program may have.
    pub fn most(&self) -> usize {
        match self.unmodified {
            true => MORE_DESCRIPTORS,
            false => MAX_DESCRIPTORS,
        }
    }

    /// All open files.
    pub fn all_open(&self) -> impl Iterator<Item = &OpenFile> {
        self.open.iter().flatten()
    }

    /// All open files, to change.
    pub fn all_open_mut(&mut self) -> impl Iterator<Item = &mut OpenFile> {
        self.open.iter_mut().flatten()
    }

    /// Has all timers go off so much later.
    pub fn shift_timers(&mut self, by: Duration) {
        for file in self.all_open_mut() {
            if let Kind::TimerFd(timer) = &mut file.kind {
                timer.shift(by);
            }
        }
    }

    /// The open file at a place, which its descriptors name.
    pub fn open_at(&self, place: usize) -> Option<&OpenFile> {
        self.open.get(place)?.as_ref()
    }

    /// Bytes of all texts that are open.
    fn text_bytes(&self) -> usize {
        self.open.iter().flatten().map(OpenFile::text_len).sum()
    }

    /// Gives an open file the lowest free descriptor.
    pub fn add(&mut self, file: OpenFile, close_on_exec: bool) -> Result<u64, Errno> {
        let text = file.text_len();
        if text > 0 && self.text_bytes().saturating_add(text) > MAX_TEXT_BYTES {
            return Err(Errno::NOMEM);
        }
        let number = self.free_from(0).ok_or(Errno::MFILE)?;
        if let Kind::Node(id, _) = file.kind {
            self.overlay.tree_mut().opened(id)?;
        }
        let index = match self.open.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.open.push(None);
                self.open.len() - 1
            }
        };
        if let Some(place) = self.open.get_mut(index) {
            *place = Some(file);
        }
        self.point(
            number,
            Descriptor {
                file: index,
                close_on_exec,
            },
        );
        Ok(crate::linux::abi::length(number))
    }

    /// The numbers of what is open.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        let all = (0..).zip(&self.descriptors);
        all.filter(|(_, place)| place.is_some())
            .map(|(number, _)| number)
    }

    /// The descriptors with what they point to.
    pub fn pointed(&self) -> impl Iterator<Item = (i32, Descriptor)> {
        let all = (0..).zip(&self.descriptors);
        all.filter_map(|(number, place)| Some((number, (*place)?)))
    }

    /// The descriptor that the next open file gets.
    pub fn lowest_free(&self) -> Option<i32> {
        self.free_from(0).and_then(|number| number.try_into().ok())
    }

    /// How many descriptors there are of an open file, those on their way included.
    pub fn references(&self, place: usize) -> usize {
        self.open_at(place).map_or(0, |file| file.references)
    }

    /// True if so many more descriptors can be had.
    pub fn has_room_for(&self, wanted: usize) -> bool {
        let used = self.descriptors.iter().flatten().count();
        used.saturating_add(wanted) <= self.most()
    }

    /// The open file of a descriptor.
    pub fn get(&self, fd: u64) -> Result<&OpenFile, Errno> {
        let file = self.descriptor(fd)?.file;
        self.open
            .get(file)
            .and_then(Option::as_ref)
            .ok_or(Errno::BADF)
    }

    /// The open file of a descriptor, to change.
    pub fn get_mut(&mut self, fd: u64) -> Result<&mut OpenFile, Errno> {
        let file = self.descriptor(fd)?.file;
        self.open
            .get_mut(file)
            .and_then(Option::as_mut)
            .ok_or(Errno::BADF)
    }

    /// Where a descriptor points to.
    pub fn descriptor(&self, fd: u64) -> Result<Descriptor, Errno> {
        // Descriptors are ints: the upper half of the register does not count.
        let number = usize::try_from(int(fd)).map_err(|_| Errno::BADF)?;
        self.descriptors
            .get(number)
            .copied()
            .flatten()
            .ok_or(Errno::BADF)
    }

    fn free_from(&self, least: usize) -> Option<usize> {
        let free = |number: &usize| !matches!(self.descriptors.get(*number), Some(Some(_)));
        (least..self.most()).find(free)
    }

    /// Lets a descriptor below the limit point to an open file.
    fn point(&mut self, number: usize, descriptor: Descriptor) {
        if self.descriptors.len() <= number {
            self.descriptors
                .resize(number.saturating_add(1).min(MORE_DESCRIPTORS), None);
        }
        if let (Some(place), Some(Some(file))) = (
            self.descriptors.get_mut(number),
            self.open.get_mut(descriptor.file),
        ) {
            *place = Some(descriptor);
            file.references = file.references.saturating_add(1);
        }
    }

    /// Closes what execve(2) closes.
    pub fn close_on_exec(&mut self) {
        let closing = |place: &Option<Descriptor>| place.is_some_and(|found| found.close_on_exec);
        let numbers: Vec<u64> = (0..)
            .zip(&self.descriptors)
            .filter(|(_, place)| closing(place))
            .map(|(number, _)| number)
            .collect();
        for number in numbers {
            close(self, number).ok();
        }
    }

    /// Holds an open file as a descriptor does: one that is sent to another socket (unix(7)).
    pub fn hold(&mut self, place: usize) {
        if let Some(Some(file)) = self.open.get_mut(place) {
            file.references = file.references.saturating_add(1);
        }
    }

    /// One descriptor less of an open file, or one less that is on its way. The last takes it along.
    fn let_go(&mut self, place: usize) {
        let Some(Some(file)) = self.open.get_mut(place) else {
            return;
        };
        file.references = file.references.saturating_sub(1);
        if file.references > 0 {
            return;
        }
        match file.kind {
            Kind::PipeReader(pipe) => self.close_pipe(pipe, Ends::READER),
            Kind::PipeWriter(pipe) => self.close_pipe(pipe, Ends::WRITER),
            Kind::PipeBoth(pipe) => self.close_pipe(pipe, Ends::BOTH),
            Kind::Node(id, _) => self.overlay.tree_mut().closed(id),
            Kind::Socket(id) => self.sockets.close(id),
            Kind::Epoll(id) => self.epolls.close(id),
            _ => {}
        }
        if let Some(place) = self.open.get_mut(place) {
            *place = None;
        }
        self.epolls.forget(place);
        self.locks.ended(place);
    }

    /// An open file of a pipe is gone, and with the last the file that a name stands for, if it has no name by now.
    pub fn close_pipe(&mut self, pipe: usize, ends: Ends) {
        if let Some(node) = self.pipes.close(pipe, ends) {
            self.overlay.tree_mut().closed(node);
        }
    }

    /// A task does not wait any more for the other end of a named pipe that it was opening.
    pub fn give_up_opening(&mut self, tid: i32) {
        if self.pipes.are_awaited()
            && let Some((pipe, ends)) = self.pipes.give_up(tid)
        {
            self.close_pipe(pipe, ends);
        }
    }

    /// Lets go of the open files that were on their way to sockets and will not be received.
    pub fn release_unreceived(&mut self) {
        // A socket among them may have had others on their way.
        while let Some(place) = self.sockets.take_unreceived() {
            self.let_go(place);
        }
    }

    /// Gives an open file that was received the lowest free descriptor.
    pub fn receive(&mut self, file: usize, close_on_exec: bool) -> Result<u64, Errno> {
        let number = self.free_from(0).ok_or(Errno::MFILE)?;
        self.point(
            number,
            Descriptor {
                file,
                close_on_exec,
            },
        );
        Ok(crate::linux::abi::length(number))
    }

    /// Makes a descriptor of the same open file, with a number of at least `least`.
    pub fn duplicate(&mut self, fd: u64, least: u64, close_on_exec: bool) -> Value {
        let file = self.descriptor(fd)?.file;
        let least = usize::try_from(int(least)).map_err(|_| Errno::INVAL)?;
        if least >= self.most() {
            return Err(Errno::INVAL);
        }
        let number = self.free_from(least).ok_or(Errno::MFILE)?;
        self.point(
            number,
            Descriptor {
                file,
                close_on_exec,
            },
        );
        Ok(count(number))
    }
}

/// close(2)
pub fn close(files: &mut Files, fd: u64) -> Value {
    let descriptor = files.descriptor(fd)?;
    let number = usize::try_from(int(fd)).map_err(|_| Errno::BADF)?;
    if let Some(place) = files.descriptors.get_mut(number) {
        *place = None;
    }
    if !files.locks.is_empty()
        && let Some(Some(file)) = files.open.get(descriptor.file)
        && let Ok(of) = Locked::of(file, descriptor.file)
    {
        files.locks.closed(of);
    }
    files.let_go(descriptor.file);
    files.release_unreceived();
    Ok(0)
}

/// close_range(2). `CLOSE_RANGE_CLOEXEC` marks; `CLOSE_RANGE_UNSHARE` has nobody to unshare from.
pub fn close_range(files: &mut Files, first: u64, last: u64, how: u64) -> Value {
    let (first, last, how) = (flags(first), flags(last), flags(how));
    if first > last || how & !6 != 0 {
        return Err(Errno::INVAL);
    }
    for number in first..=last.min(u32::try_from(MORE_DESCRIPTORS).unwrap_or(u32::MAX)) {
        let fd = u64::from(number);
        if how & 4 != 0 {
            set_close_on_exec(files, fd, true).ok();
        } else {
            close(files, fd).ok();
        }
    }
    Ok(0)
}

/// dup(2)
pub fn dup(files: &mut Files, fd: u64) -> Value {
    files.duplicate(fd, 0, false)
}

/// dup2(2)
pub fn dup2(files: &mut Files, old: u64, new: u64) -> Value {
    if int(old) == int(new) {
        files.descriptor(old)?;
        return Ok(i64::from(int(new)));
    }
    dup3(files, old, new, 0)
}

/// dup3(2)
pub fn dup3(files: &mut Files, old: u64, new: u64, how: u64) -> Value {
    if int(old) == int(new) || flags(how) & !O_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    let file = files.descriptor(old)?.file;
    let number = usize::try_from(int(new)).map_err(|_| Errno::BADF)?;
    if number >= files.most() {
        return Err(Errno::BADF);
    }
    // Closing what was there can't close `file`: `old` still holds it.
    close(files, new).ok();
    files.point(
        number,
        Descriptor {
            file,
            close_on_exec: flags(how) & O_CLOEXEC != 0,
        },
    );
    Ok(count(number))
}

/// Sets what would happen to a descriptor at execve(2).
pub fn set_close_on_exec(files: &mut Files, fd: u64, on: bool) -> Value {
    files.descriptor(fd)?;
    let number = usize::try_from(int(fd)).map_err(|_| Errno::BADF)?;
    if let Some(Some(descriptor)) = files.descriptors.get_mut(number) {
        descriptor.close_on_exec = on;
    }
    Ok(0)
}
