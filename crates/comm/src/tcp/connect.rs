//! Connecting the members of a group pairwise.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use crate::error::{CommError, Result};
use crate::membership::Membership;

/// How long to wait between looks at the health of the others.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// A connection that does not introduce itself within this time is not one of ours.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a member says when it connects: the listener's secret and its own place in the group.
const GREETING_BYTES: usize = 16;

/// One connection to every other member, by place in the group. They do not block.
pub(super) fn connect(membership: &Membership<'_>) -> Result<Vec<Option<TcpStream>>> {
    let context = &membership.context;
    let failed = |what| {
        let site = context.creation();
        move |source: io::Error| CommError::System {
            what,
            site,
            source: Arc::new(source),
        }
    };
    let listener =
        TcpListener::bind((membership.address(), 0)).map_err(failed("listen for the members"))?;
    let address = listener
        .local_addr()
        .map_err(failed("listen for the members"))?;
    // Keeps out whoever connects to the port without having been told about it.
    let secret = RandomState::new().build_hasher().finish();
    let listeners = membership.exchange("listener", &format!("{address} {secret}"))?;
    let mut sockets: Vec<Option<TcpStream>> = (0..context.size()).map(|_| None).collect();
    // Members connect to those before them and accept those after them. The listeners are there already, so nobody waits
    // for anybody in a circle.
    for (member, listener) in listeners.iter().enumerate().take(context.rank) {
        sockets[member] = Some(connect_to(membership, member, listener)?);
    }
    accept_others(membership, &listener, secret, &mut sockets)?;
    for socket in sockets.iter().flatten() {
        set_up(socket, context.timeout).map_err(failed("set up a connection"))?;
    }
    Ok(sockets)
}

fn connect_to(membership: &Membership<'_>, member: usize, listener: &str) -> Result<TcpStream> {
    let context = &membership.context;
    let failed = |source: io::Error| CommError::Connect {
        rank: context.ranks[member],
        address: listener.split(' ').next().unwrap_or_default().to_owned(),
        site: context.creation(),
        source: Arc::new(source),
    };
    let (address, secret) = listener
        .split_once(' ')
        .and_then(|(address, secret)| {
            let address: SocketAddr = address.parse().ok()?;
            Some((address, secret.parse::<u64>().ok()?))
        })
        .ok_or_else(|| failed(io::Error::other("that is no address")))?;
    let connected = TcpStream::connect_timeout(&address, context.timeout);
    let mut socket = connected.map_err(&failed)?;
    let mut greeting = [0; GREETING_BYTES];
    greeting[..8].copy_from_slice(&secret.to_le_bytes());
    greeting[8..].copy_from_slice(&(context.rank as u64).to_le_bytes());
    socket.write_all(&greeting).map_err(&failed)?;
    Ok(socket)
}

fn accept_others(
    membership: &Membership<'_>,
    listener: &TcpListener,
    secret: u64,
    sockets: &mut [Option<TcpStream>],
) -> Result<()> {
    let context = &membership.context;
    let deadline = Instant::now() + context.timeout;
    loop {
        let missing: Vec<usize> = (context.rank + 1..context.size())
            .filter(|member| sockets[*member].is_none())
            .map(|member| context.ranks[member])
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        context.health.check(&missing, &|| context.creation())?;
        if Instant::now() >= deadline {
            return Err(CommError::Timeout {
                ranks: missing,
                timeout: context.timeout,
                site: context.creation(),
            });
        }
        let mut waiting = [PollFd::new(listener, PollFlags::IN)];
        let timeout = Timespec::try_from(LOOK_AROUND).ok();
        if poll(&mut waiting, timeout.as_ref()).unwrap_or(0) == 0 {
            continue;
        }
        match accept_one(listener, secret) {
            Ok((member, socket)) if member > context.rank && member < context.size() => {
                sockets[member] = Some(socket);
            }
            Ok((member, _)) => tracing::debug!(member, "an unexpected member connected"),
            Err(error) => tracing::debug!(%error, "a stranger connected"),
        }
    }
}

fn accept_one(listener: &TcpListener, secret: u64) -> io::Result<(usize, TcpStream)> {
    let (mut socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(GREETING_TIMEOUT))?;
    let mut greeting = [0; GREETING_BYTES];
    socket.read_exact(&mut greeting)?;
    let number = |at: usize| {
        let bytes: [u8; 8] = std::array::from_fn(|byte| greeting[at + byte]);
        u64::from_le_bytes(bytes)
    };
    if number(0) != secret {
        return Err(io::Error::other("it does not know the secret"));
    }
    Ok((number(8) as usize, socket))
}

fn set_up(socket: &TcpStream, timeout: Duration) -> io::Result<()> {
    // Buffer sizes are left to the kernel, which grows them with the connection's bandwidth and delay; a size set here
    // would be capped at a small default and switch that off.
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    // A host that vanishes without a word while data is on its way to it.
    SockRef::from(socket).set_tcp_user_timeout(Some(timeout))
}
