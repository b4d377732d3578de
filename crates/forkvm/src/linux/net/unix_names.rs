//! What sockets are found by: the files that Unix sockets are bound to (unix(7)), and other names.
//!
//! Where the program may make no files a path is a name all the same, so that a server's socket in /run needs no right to
//! write there; only that no file is seen.

use rustix::io::Errno;

use crate::linux::abi::HERE;
use crate::linux::files::copies;
use crate::linux::files::fds::Files;
use crate::linux::files::overlay::tree::Nature;
use crate::linux::files::paths::Target;
use crate::linux::files::resolve::{Lookup, Resolved, Shared};
use crate::linux::net::address::{Address, plain};
use crate::linux::net::socket::Name;

/// Permissions of a socket's file, before the umask.
const MODE: u32 = 0o777;

/// The name that a socket gets that is bound to a path: a new file's, if one can be made there.
pub fn bind(shared: &Shared, files: &mut Files, path: &[u8], umask: u32) -> Result<Name, Errno> {
    let lookup = Lookup::new(HERE, path.to_vec());
    match shared.resolve(files, &lookup, false)? {
        Resolved::Free(path) if path.folder => Err(Errno::NOENT),
        Resolved::Free(path) => {
            let id = copies::make(files, &path, Nature::Socket, MODE & !umask)?;
            Ok(Name::File(id))
        }
        Resolved::Outside(path, None) => Ok(Name::Path(path.text())),
        Resolved::Volume(spot) if spot.found.is_none() => Ok(Name::Path(spot.path.text())),
        Resolved::There(..) | Resolved::Outside(..) | Resolved::Volume(_) => Err(Errno::ADDRINUSE),
    }
}

/// The name of the socket that an address is of.
pub fn find(shared: &Shared, files: &Files, address: &Address) -> Result<Name, Errno> {
    let path = match address {
        Address::Inet(address) => return Ok(Name::Inet(plain(*address))),
        Address::Abstract(name) => return Ok(Name::Abstract(name.clone())),
        Address::Unspecified | Address::Unnamed | Address::Netlink(_) => {
            return Err(Errno::INVAL);
        }
        Address::Path(path) => path,
    };
    let lookup = Lookup::new(HERE, path.clone());
    let (path, is_there) = match shared.resolve(files, &lookup, true)? {
        Resolved::There(_, Target::Node(id)) => {
            return match files.overlay.tree().node(id)?.nature {
                Nature::Socket => Ok(Name::File(id)),
                _ => Err(Errno::CONNREFUSED),
            };
        }
        Resolved::There(path, _) => (path, true),
        Resolved::Free(path) => (path, false),
        Resolved::Outside(path, target) => (path, target.is_some()),
        Resolved::Volume(spot) => (spot.path, spot.found.is_some()),
    };
    let name = Name::Path(path.text());
    let is_bound = files
        .sockets
        .iter()
        .any(|(_, socket)| socket.name.as_ref() == Some(&name));
    match is_bound {
        true => Ok(name),
        false if is_there => Err(Errno::CONNREFUSED),
        false => Err(Errno::NOENT),
    }
}
