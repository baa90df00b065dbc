//! How ranks meet. These worlds live in one process, a thread to a rank: nothing here needs more.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use tandem_comm::{CommError, ReduceOp, Transport, Work, World, WorldConfig};
use tandem_tensor::{Kind, Tensor};

use tandem_comm::testing::{Setup, free_port};

fn config(rank: usize, ranks: usize, port: u16) -> WorldConfig {
    Setup::new("", ranks, Transport::Auto)
        .timeout(Duration::from_secs(600))
        .config(rank, port)
}

/// Meets with the given configurations and adds up the ranks.
fn meet(configs: Vec<WorldConfig>, connect: fn(&WorldConfig) -> Result<World, CommError>) {
    std::thread::scope(|scope| {
        for config in &configs {
            scope.spawn(move || {
                let world = connect(config).unwrap();
                let ranks: Vec<usize> = (0..world.size()).collect();
                let group = world.new_group("all", &ranks).unwrap();
                let sum = Tensor::from_slice(&[world.rank() as i64]);
                group
                    .all_reduce(&sum, ReduceOp::Sum)
                    .and_then(Work::wait)
                    .unwrap();
                assert_eq!(
                    sum.get(0).int64_value(),
                    (0..world.size() as i64).sum::<i64>()
                );
                assert_eq!(sum.kind(), Kind::Int64);
                println!("rank {} met at {}", world.rank(), world.address());
                world.finish();
            });
        }
    });
}

#[test]
fn ranks_meet_over_ipv4_and_ipv6_by_address_and_by_name() {
    for address in ["127.0.0.1", "::1", "[::1]", "localhost"] {
        for transport in [Transport::Auto, Transport::Tcp] {
            let port = free_port(if address.contains(':') {
                "::1"
            } else {
                "127.0.0.1"
            });
            let configs = (0..3).map(|rank| WorldConfig {
                master_addr: address.to_owned(),
                transport,
                ..config(rank, 3, port)
            });
            meet(configs.collect(), World::connect);
        }
    }
}

#[test]
fn hosts_with_several_ranks_each_listen_for_each_other() {
    let port = free_port("127.0.0.1");
    // Rank 0 then listens on all addresses, as for ranks of other hosts.
    let configs = (0..2).map(|rank| WorldConfig {
        local_world_size: 1,
        local_rank: 0,
        network_interface: Some("lo".to_owned()),
        transport: Transport::Tcp,
        ..config(rank, 2, port)
    });
    meet(configs.collect(), World::connect);
}

#[test]
fn an_inherited_socket_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut configs: Vec<WorldConfig> = (0..2).map(|rank| config(rank, 2, port)).collect();
    configs[0].master_fd = Some(listener.into_raw_fd());
    meet(configs, World::connect);
}

#[test]
fn ranks_find_each_other_beside_an_agent_that_owns_the_port() {
    let agent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = agent.local_addr().unwrap().port();
    let configs = (0..3).map(|rank| config(rank, 3, port)).collect();
    meet(configs, World::connect_beside_agent);
}

#[test]
fn strangers_do_not_disturb() {
    let port = free_port("127.0.0.1");
    let stranger = std::thread::spawn(move || {
        for _ in 0..200 {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                let _sent = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
                let mut answer = Vec::new();
                let _ended = stream.read_to_end(&mut answer);
                return answer.is_empty();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    });
    let mut configs: Vec<WorldConfig> = (0..2).map(|rank| config(rank, 2, port)).collect();
    // The stranger comes while rank 0 waits for rank 1.
    let late = configs.pop().unwrap();
    let first = configs.pop().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || World::connect(&first).unwrap());
        assert!(stranger.join().unwrap(), "the stranger got through");
        World::connect(&late).unwrap();
    });
}

#[test]
fn mistakes_are_told_to_who_made_them() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let error = World::connect(&config(0, 2, taken_port)).err().unwrap();
    println!("{error}");
    assert!(matches!(error, CommError::Listen { .. }));
    assert!(error.to_string().contains("choose another MASTER_PORT"));

    let quick = |rank, ranks, port| WorldConfig {
        timeout: Duration::from_secs(1),
        ..config(rank, ranks, port)
    };
    let error = World::connect(&quick(1, 2, free_port("127.0.0.1")))
        .err()
        .unwrap();
    println!("{error}");
    assert!(
        error
            .to_string()
            .contains("rank 0 was not there within 1 s")
    );

    let error = World::connect(&quick(0, 3, free_port("127.0.0.1")))
        .err()
        .unwrap();
    println!("{error}");
    assert!(
        error
            .to_string()
            .contains("ranks [1, 2] did not come within 1 s")
    );

    let error = World::connect(&quick(5, 3, 1)).err().unwrap();
    println!("{error}");
    assert!(error.to_string().contains("no rank 5 among 3"));

    let port = free_port("127.0.0.1");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| World::connect(&config(0, 2, port)).unwrap());
        let error = World::connect(&config(1, 3, port)).err().unwrap();
        println!("{error}");
        assert!(
            error
                .to_string()
                .contains("started for 3 ranks, rank 0 for 2")
        );
        let error = World::connect(&config(0, 2, port)).err().unwrap();
        println!("{error}");
        assert!(matches!(error, CommError::Listen { .. }));
        let error = World::connect(&WorldConfig {
            network_interface: Some("nope0".to_owned()),
            ..config(1, 2, port)
        })
        .err()
        .unwrap();
        println!("{error}");
        assert!(
            error
                .to_string()
                .contains("network interface \"nope0\" does not exist")
        );
        let world = first.join().unwrap();
        let error = World::connect(&config(1, 2, port)).err().unwrap();
        println!("{error}");
        assert!(error.to_string().contains("there is a rank 1 already"));
        let error = world.new_group("g", &[1]).err().unwrap();
        println!("{error}");
        assert!(error.to_string().contains("rank 0 cannot create it"));
        assert!(world.new_group("g", &[0, 7]).is_err());
        assert!(world.new_group("g", &[0, 0]).is_err());
        assert_eq!(world.new_group("g", &[0]).unwrap().size(), 1);
    });
}
