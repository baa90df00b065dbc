//! Connecting the members of a group pairwise.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::meet::door::Door;
use crate::meet::handshake::{self, Unanswered};
use crate::meet::membership::Membership;

/// How long to wait between looks at the health of the others.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// One connection to every other member, by place in the group. They do not block.
pub(super) fn connect(
    context: &GroupContext,
    membership: &Membership<'_>,
) -> Result<Vec<Option<TcpStream>>> {
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
    let expected = context.size() - context.rank - 1;
    let door = membership.door(listener, expected);
    let mut door = door.map_err(failed("listen for the members"))?;
    let listeners = membership.exchange("listener", &address.to_string())?;
    let mut sockets: Vec<Option<TcpStream>> = (0..context.size()).map(|_| None).collect();
    // Members connect to those before them and let in those after them. The listeners are there already, so nobody waits
    // for anybody in a circle.
    for (member, listener) in listeners.iter().enumerate().take(context.rank) {
        sockets[member] = Some(connect_to(context, membership, member, listener)?);
    }
    let_in_others(context, &mut door, &mut sockets)?;
    for socket in sockets.iter().flatten() {
        set_up(socket, context.timeout).map_err(failed("set up a connection"))?;
    }
    Ok(sockets)
}

fn connect_to(
    context: &GroupContext,
    membership: &Membership<'_>,
    member: usize,
    listener: &str,
) -> Result<TcpStream> {
    let rank = context.ranks[member];
    let failed = |source: io::Error| CommError::Connect {
        rank,
        address: listener.to_owned(),
        site: context.creation(),
        source: Arc::new(source),
    };
    let address: SocketAddr = listener
        .parse()
        .map_err(|_| failed(io::Error::other("that is no address")))?;
    let deadline = Instant::now() + context.timeout;
    let is_well = || context.health.check(&[rank], &|| context.creation());
    let goes_on = || Instant::now() < deadline && is_well().is_ok();
    let socket = TcpStream::connect_timeout(&address, context.timeout).map_err(&failed)?;
    let called = handshake::call(
        &socket,
        membership.secret(),
        &membership.purpose(member),
        context.rank as u64,
        &goes_on,
    );
    match called {
        Ok(()) => Ok(socket),
        Err(Unanswered::OtherSecret) => Err(failed(io::Error::other(
            "who listens there does not have this run's secret",
        ))),
        Err(Unanswered::NotOurs(error)) => {
            // A member that is gone, or fails, is the better explanation.
            is_well()?;
            if error.kind() != io::ErrorKind::TimedOut {
                return Err(failed(error));
            }
            Err(CommError::Timeout {
                ranks: vec![rank],
                timeout: context.timeout,
                site: context.creation(),
            })
        }
    }
}

fn let_in_others(
    context: &GroupContext,
    door: &mut Door,
    sockets: &mut [Option<TcpStream>],
) -> Result<()> {
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
        let (admitted, _) =
            door.wait(Some(LOOK_AROUND), &[])
                .map_err(|source| CommError::System {
                    what: "let in the members",
                    site: context.creation(),
                    source: Arc::new(source),
                })?;
        for one in admitted {
            let member = usize::try_from(one.number).ok();
            match member.filter(|member| *member > context.rank && *member < context.size()) {
                Some(member) if sockets[member].is_none() => sockets[member] = Some(one.stream),
                _ => tracing::debug!(member = one.number, "an unexpected member connected"),
            }
        }
    }
}

fn set_up(socket: &TcpStream, timeout: Duration) -> io::Result<()> {
    // Buffer sizes are left to the kernel, which grows them with the connection's bandwidth and delay; a size set here
    // would be capped at a small default and switch that off.
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    // A host that vanishes without a word while data is on its way to it.
    SockRef::from(socket).set_tcp_user_timeout(Some(timeout))
}
