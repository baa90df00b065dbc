//! How the members of a communicator are connected: pairwise, by sockets of the system's name space without files.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// How long to wait before knocking once more where nobody listens yet.
const AGAIN: Duration = Duration::from_millis(1);

/// Connections to all other members, by rank; they do not block. Waits for all of them, for ever if need be, as NCCL does.
pub(super) fn meet(name: &str, rank: usize, size: usize) -> io::Result<Vec<Option<UnixStream>>> {
    let address = |rank: usize| SocketAddr::from_abstract_name(format!("{name}-{rank}"));
    let listener = UnixListener::bind_addr(&address(rank)?)?;
    let mut links: Vec<Option<UnixStream>> = (0..size).map(|_| None).collect();
    for (peer, link) in links.iter_mut().enumerate().take(rank) {
        let mut socket = knock(&address(peer)?)?;
        socket.write_all(&[rank as u8])?;
        *link = Some(socket);
    }
    for _ in rank + 1..size {
        let (mut socket, _) = listener.accept()?;
        let mut peer = [0];
        socket.read_exact(&mut peer)?;
        let unknown = || io::Error::other("a member of no such rank");
        *links.get_mut(usize::from(peer[0])).ok_or_else(unknown)? = Some(socket);
    }
    for socket in links.iter().flatten() {
        socket.set_nonblocking(true)?;
    }
    Ok(links)
}

fn knock(address: &SocketAddr) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect_addr(address) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(AGAIN);
            }
            connected => return connected,
        }
    }
}
