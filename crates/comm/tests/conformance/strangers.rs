//! Who does not belong: nobody gets in, and nobody is disturbed. These worlds live in one process, a thread to a rank.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::sync::Barrier;
use std::time::Duration;

use tandem_comm::testing::{Setup, everyone};
use tandem_comm::{CommError, ReduceOp, RunSecret, Transport, Work, World, WorldConfig};
use tandem_tensor::Tensor;

/// What a connection of ours begins with.
const MAGIC: &[u8; 8] = b"TANDEM\0\x03";

/// Nothing here takes as long; it only keeps a test from hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// Connections of a stranger. More than wait at a door at the same time.
const HELD: usize = 200;

/// A listening socket for rank 0, and the configurations of `ranks` ranks that meet there.
fn configs(ranks: usize, secret: &RunSecret) -> (SocketAddr, Vec<WorldConfig>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let configs = (0..ranks).map(|rank| WorldConfig {
        secret: secret.clone(),
        ..Setup::new("", ranks, Transport::Tcp)
            .timeout(Duration::from_secs(600))
            .config(rank, address.port())
    });
    let mut configs: Vec<WorldConfig> = configs.collect();
    configs[0].master_fd = Some(listener.into_raw_fd());
    (address, configs)
}

/// Whether the ranks of `world` can make a group and add up their numbers.
fn adds_up(world: &World) {
    let group = everyone(world);
    let sum = Tensor::from_slice(&[world.rank() as i64]);
    group
        .all_reduce(&sum, ReduceOp::Sum)
        .and_then(Work::wait)
        .unwrap();
    let expected = (0..world.size() as i64).sum::<i64>();
    assert_eq!(sum.get(0).int64_value(), expected);
}

/// Connects to rank 0, which may not have begun to serve.
fn stranger(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the other side closes.
fn all_that_comes(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // Closed while there was more to read on the other side.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    bytes
}

/// Runs `disturb` while rank 0 waits for rank 1, and once more while both are at work. What it returns stays open all the
/// while.
fn undisturbed_by(disturb: impl Fn(SocketAddr) -> Vec<TcpStream>) {
    let (address, configs) = configs(2, &RunSecret::random().unwrap());
    let disturbed = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| World::connect(&configs[0]).unwrap());
        let before = disturb(address);
        let second = scope.spawn(|| {
            let world = World::connect(&configs[1]).unwrap();
            adds_up(&world);
            disturbed.wait();
            adds_up(&world);
        });
        let world = first.join().unwrap();
        adds_up(&world);
        let during = disturb(address);
        disturbed.wait();
        adds_up(&world);
        second.join().unwrap();
        drop((before, during));
    });
}

#[test]
fn who_has_no_secret_or_another_one_is_refused() {
    undisturbed_by(|address| {
        for secret in [
            RunSecret::random().unwrap(),
            RunSecret::guessable(&format!("{} 2", address.port())),
        ] {
            // In the place of a rank that is there, of one that may be missing, and of one that does not exist.
            for rank in [1, 0, 7] {
                let config = WorldConfig {
                    rank,
                    world_size: 8,
                    master_fd: None,
                    secret: secret.clone(),
                    ..Setup::new("", 8, Transport::Tcp).config(rank, address.port())
                };
                if rank == 0 {
                    // It cannot even listen.
                    let error = World::connect(&config).err().unwrap();
                    assert!(matches!(error, CommError::Listen { .. }), "{error}");
                    continue;
                }
                let error = World::connect(&config).err().unwrap();
                assert!(
                    error
                        .to_string()
                        .contains("does not have this rank's secret"),
                    "{error}"
                );
            }
        }
        Vec::new()
    });
}

#[test]
fn a_recorded_handshake_is_of_no_use() {
    let (address, mut configs) = configs(2, &RunSecret::random().unwrap());
    // Rank 1 comes through somebody who listens to what it says.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    configs[1].master_port = listener.local_addr().unwrap().port();
    let spy = std::thread::spawn(move || {
        let (from, _) = listener.accept().unwrap();
        let to = TcpStream::connect(address).unwrap();
        let (answers, answered) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        let back = std::thread::spawn(move || {
            let _copied = std::io::copy(&mut &answers, &mut &answered);
            let _shut = answered.shutdown(Shutdown::Both);
        });
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count) = (&from).read(&mut chunk) {
            if count == 0 || (&to).write_all(&chunk[..count]).is_err() {
                break;
            }
            said.extend_from_slice(&chunk[..count]);
        }
        let _shut = to.shutdown(Shutdown::Both);
        back.join().unwrap();
        said
    });
    std::thread::scope(|scope| {
        let second = scope.spawn(|| adds_up(&World::connect(&configs[1]).unwrap()));
        let world = World::connect(&configs[0]).unwrap();
        adds_up(&world);
        second.join().unwrap();
        let said = spy.join().unwrap();
        assert!(said.starts_with(MAGIC) && said.len() > 80, "{said:?}");
        let replay = stranger(address);
        // The rest may find the connection closed.
        let _sent = (&replay).write_all(&said);
        let answer = all_that_comes(&replay);
        // A new nonce and the verdict, if it was not cut off by what came after the proof.
        assert!(answer.len() <= 33, "{} bytes", answer.len());
        assert!(answer.len() < 33 || answer[32] == 0, "it was let in");
    });
}

#[test]
fn who_floods_before_proving_anything_fills_no_memory() {
    // What libtorch takes when it is loaded is not to be counted.
    let _loaded = Tensor::from_slice(&[0i64]);
    undisturbed_by(|address| {
        let before = resident_bytes();
        for beginning in [&b"GET / HTTP/1.1\r\n"[..], MAGIC, b""] {
            let flood = stranger(address);
            let _sent = (&flood).write_all(beginning);
            let chunk = vec![0x5a; 1 << 20];
            // It is closed after the first bytes; how many the kernel takes until then is its business.
            let taken = (0..256)
                .take_while(|_| (&flood).write_all(&chunk).is_ok())
                .count();
            assert!(taken < 256, "all of it was taken");
            assert!(all_that_comes(&flood).len() <= 33);
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
        Vec::new()
    });
}

#[test]
fn held_connections_keep_nobody_out() {
    undisturbed_by(|address| {
        let held: Vec<TcpStream> = (0..HELD)
            .map(|number| {
                let stream = stranger(address);
                // Silent, or in the middle of a handshake.
                let _sent = (&stream).write_all(&MAGIC[..number % 9]);
                stream
            })
            .collect();
        // Those for whom there was no room have been sent away.
        let sent_away = held
            .iter()
            .take(HELD / 2)
            .filter(|stream| all_that_comes(stream).is_empty())
            .count();
        assert_eq!(sent_away, HELD / 2);
        // The others stay while the ranks go on.
        held
    });
}

/// Memory of this process that is neither a file's nor shared.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    kib.parse::<usize>().unwrap() << 10
}
