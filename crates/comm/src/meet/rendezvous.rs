//! Where rank 0 listens and how the others find it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{CommError, Result};
use crate::meet::config::WorldConfig;
use crate::meet::health::Health;
use crate::meet::store::{Client, Refusal, Server};

/// Ports after `master_port` that are tried when something else owns that one.
const PORTS_BESIDE: u16 = 16;

/// Why the other side and this one do not get together.
const OTHER_SECRET: &str = "who listens there does not have this rank's secret; either the ranks were given different ones \
    (TANDEM_RENDEZVOUS_SECRET, --rendezvous_secret_file), or another run listens there";

const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// The ports where rank 0 may listen, in the order in which everybody tries them.
pub(crate) fn ports(master_port: u16, beside_agent: bool) -> Vec<u16> {
    if !beside_agent {
        return vec![master_port];
    }
    // Wraps around within the ports that need no privilege.
    let span = u32::from(u16::MAX) - 1023;
    let base = u32::from(master_port.max(1024)) - 1024;
    (1..=u32::from(PORTS_BESIDE))
        .map(|offset| (1024 + (base + offset) % span) as u16)
        .collect()
}

/// Rank 0's listening socket.
///
/// # Errors
/// [`CommError::Listen`].
pub(crate) fn listen(config: &WorldConfig, ports: &[u16]) -> Result<TcpListener> {
    if let Some(fd) = config.master_fd {
        return adopt(fd).map_err(|source| CommError::Listen {
            address: format!("the inherited socket {fd}"),
            remedy: "whoever started this worker must leave a listening TCP socket there (TANDEM_MASTER_FD)"
                .to_owned(),
            source: Arc::new(source),
        });
    }
    let mut last = None;
    for port in ports {
        match bind(config, *port) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some((*port, error)),
        }
    }
    let (port, source) = last.unwrap_or((config.master_port, io::Error::other("no port")));
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another process, perhaps another run, uses the port: choose another MASTER_PORT"
        }
        io::ErrorKind::PermissionDenied => "choose a MASTER_PORT above 1023",
        _ => "check MASTER_ADDR and MASTER_PORT",
    };
    Err(CommError::Listen {
        address: format!("port {port}"),
        remedy: remedy.to_owned(),
        source: Arc::new(source),
    })
}

/// Connects to rank 0, which may not listen yet.
///
/// # Errors
/// [`CommError::Rendezvous`].
pub(crate) fn connect(
    config: &WorldConfig,
    ports: &[u16],
    own_listener: Option<SocketAddr>,
    health: &Arc<Health>,
) -> Result<Client> {
    let deadline = Instant::now() + config.timeout;
    let failed = |reason: String| config.rendezvous_failed(reason);
    let mut backoff = Duration::from_millis(10);
    loop {
        let mut last = String::new();
        let addresses = match own_listener {
            Some(address) => Ok(vec![reachable(address)]),
            None => resolve(&config.master_addr, ports),
        };
        match addresses {
            // A name may come to exist later, as those of Kubernetes services do.
            Err(error) => last = format!("the name does not resolve ({error})"),
            Ok(addresses) => {
                for address in addresses {
                    match Client::connect(address, config, health.clone()) {
                        Ok(client) => return Ok(client),
                        Err(Refusal::OtherSecret) if ports.len() == 1 => {
                            return Err(failed(format!("{address}: {OTHER_SECRET}")));
                        }
                        // Another run's rank 0 may have one of the ports.
                        Err(Refusal::OtherSecret) => last = format!("{address}: {OTHER_SECRET}"),
                        Err(Refusal::Refused(reason)) => return Err(failed(reason)),
                        Err(Refusal::NotThere(error)) => last = format!("{address}: {error}"),
                    }
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(failed(format!(
                "rank 0 was not there within {} s (last: {last}); check that it was started and that MASTER_ADDR and \
                 MASTER_PORT lead to it",
                config.timeout.as_secs_f64()
            )));
        }
        std::thread::sleep(backoff);
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// The address at which other hosts reach this rank: that of the wanted interface, or the one on the way to rank 0.
///
/// # Errors
/// [`CommError::Rendezvous`] when there is no such interface.
pub(crate) fn own_address(
    config: &WorldConfig,
    client: &Client,
    server: Option<&Server>,
) -> Result<IpAddr> {
    let failed = |reason: String| config.rendezvous_failed(reason);
    // Rank 0's connection to its own store says nothing, but those of the others do.
    let towards_master = match server {
        Some(server) => server.address_seen_by_others(),
        None => client.local_address().map(|address| address.ip()),
    }
    .map_err(|error| failed(format!("this rank's own address is unknown: {error}")))?
    // A socket for both families writes IPv4 addresses as IPv6.
    .to_canonical();
    let Some(name) = &config.network_interface else {
        return Ok(towards_master);
    };
    let interfaces = if_addrs::get_if_addrs()
        .map_err(|error| failed(format!("the network interfaces are unknown: {error}")))?;
    let of_name = || {
        interfaces
            .iter()
            .filter(|interface| interface.name == *name)
    };
    // The family that leads to rank 0 leads to the others too, most likely. Link-local addresses need a scope that other
    // hosts do not know.
    let usable =
        |address: &IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    of_name()
        .map(if_addrs::Interface::ip)
        .filter(usable)
        .max_by_key(|address| address.is_ipv4() == towards_master.is_ipv4())
        .ok_or_else(|| {
            let mut names: Vec<&str> = interfaces
                .iter()
                .map(|interface| interface.name.as_str())
                .collect();
            names.dedup();
            failed(format!(
                "network interface {name:?} does not exist or has no address; this host has {}",
                names.join(", ")
            ))
        })
}

fn resolve(host: &str, ports: &[u16]) -> io::Result<Vec<SocketAddr>> {
    // An IPv6 address may be given as in a URL.
    let host = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    let addresses: Vec<SocketAddr> = (host, 0).to_socket_addrs()?.collect();
    let with_port = |port: &u16| {
        let port = *port;
        addresses.iter().map(move |address| {
            let mut address = *address;
            address.set_port(port);
            address
        })
    };
    Ok(ports.iter().flat_map(with_port).collect())
}

/// How this process reaches a socket of its own.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let loopback = match listening.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(loopback, listening.port())
}

fn bind(config: &WorldConfig, port: u16) -> io::Result<TcpListener> {
    // A name that does not resolve here may resolve for the others.
    let named = resolve(&config.master_addr, &[port]).unwrap_or_default();
    let is_one_host = config.local_world_size == config.world_size;
    if let Some(address) = address_of_this_host(&named, is_one_host) {
        return bind_to(address);
    }
    if is_one_host && named.is_empty() {
        // Nobody else could find it either.
        resolve(&config.master_addr, &[port])?;
    }
    // The name under which others reach this host is not one of its own addresses (a Kubernetes service, say), so listen on
    // all of them: with IPv6, which includes IPv4, where the host has it.
    tracing::info!(
        master_addr = config.master_addr,
        "not an address of this host: rank 0 listens on all interfaces"
    );
    bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).or_else(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            return Err(error);
        }
        bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
    })
}

/// The one of `named` at which this host can be reached by all ranks.
fn address_of_this_host(named: &[SocketAddr], is_one_host: bool) -> Option<SocketAddr> {
    let is_loopback = |address: &&SocketAddr| address.ip().is_loopback();
    if is_one_host && let Some(address) = named.iter().find(is_loopback) {
        // Nobody from outside has business here.
        return Some(*address);
    }
    // Where the system does not tell, none is known to be this host's.
    let own: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .iter()
        .map(if_addrs::Interface::ip)
        .collect();
    // Many hosts give themselves their own name on the loopback interface: other hosts do not get there.
    let reachable =
        |address: &&SocketAddr| !address.ip().is_loopback() && own.contains(&address.ip());
    named.iter().find(reachable).copied()
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted run must not wait for the old one's connections to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// Takes over a socket that this process inherited.
fn adopt(fd: RawFd) -> io::Result<TcpListener> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    {
        // SAFETY: only borrowed for two system calls, which report a descriptor that is not open as an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if !rustix::net::sockopt::socket_acceptconn(borrowed)? {
            return Err(io::Error::other("it does not listen"));
        }
        // Children of this worker have no use for it.
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    }
    // SAFETY: the launcher left the descriptor, which is an open socket as was just seen, for this process to own;
    // nobody else in it knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn ports_beside_an_agent_are_the_same_for_everyone_and_valid() {
        assert_eq!(ports(29500, false), [29500]);
        let beside = ports(29500, true);
        assert_eq!((beside[0], beside.len()), (29501, 16));
        assert_eq!(ports(u16::MAX, true)[0], 1024);
    }

    #[test]
    fn a_listening_socket_is_taken_over_and_anything_else_refused() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let adopted = adopt(listening.into_raw_fd()).unwrap();
        assert_eq!(adopted.local_addr().unwrap(), address);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(adopt(file.into_raw_fd()).is_err());
        assert!(adopt(-1).is_err());
    }

    #[test]
    fn rank_0_listens_where_the_others_look_for_it_and_nowhere_else() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = if_addrs::get_if_addrs().unwrap();
        let outside = own
            .iter()
            .map(if_addrs::Interface::ip)
            .find(|address| !address.is_loopback() && address.is_ipv4());
        let elsewhere = parse("192.0.2.1:5");
        let loopback = parse("127.0.1.1:5");
        assert_eq!(address_of_this_host(&[loopback], true), Some(loopback));
        assert_eq!(address_of_this_host(&[loopback], false), None);
        assert_eq!(address_of_this_host(&[elsewhere], true), None);
        if let Some(outside) = outside {
            let outside = SocketAddr::new(outside, 5);
            let named = [elsewhere, loopback, outside];
            assert_eq!(address_of_this_host(&named, false), Some(outside));
            assert_eq!(address_of_this_host(&named, true), Some(loopback));
        }
    }

    #[test]
    fn addresses_of_both_families_resolve() {
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:5"),
            ("::1", "[::1]:5"),
            ("[::1]", "[::1]:5"),
        ] {
            let resolved = resolve(host, &[5]).unwrap();
            assert_eq!(resolved, [expected.parse().unwrap()]);
        }
    }
}
