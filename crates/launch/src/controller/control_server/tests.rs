//! The server against workers made of bare sockets.

use super::{ControlServer, Incoming};
use crate::protocol::{Command, WorkerEvent, encode};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

fn hello(rank: usize, version: u32) -> Vec<u8> {
    encode(&WorkerEvent::Hello {
        rank,
        pid: 1,
        version,
    })
}

fn texts(incoming: Vec<Incoming>) -> Vec<String> {
    incoming
        .into_iter()
        .map(|incoming| match incoming {
            Incoming::Event { rank, event } => format!("{rank} {event:?}"),
            Incoming::Warning(text) => text,
        })
        .collect()
}

#[test]
fn events_come_with_their_rank_even_in_pieces_and_after_the_end() {
    let mut server = ControlServer::open(2).unwrap();
    let path = server.path();
    let mut one = UnixStream::connect(&path).unwrap();
    let line = encode(&WorkerEvent::Phase {
        name: "loading".into(),
    });
    one.write_all(&hello(1, 1)).unwrap();
    one.write_all(&line[..9]).unwrap();
    assert_eq!(
        texts(server.receive()),
        ["1 Hello { rank: 1, pid: 1, version: 1 }"]
    );
    one.write_all(&line[9..]).unwrap();
    drop(one);
    let mut zero = UnixStream::connect(&path).unwrap();
    zero.write_all(&hello(0, 1)).unwrap();
    assert_eq!(
        texts(server.receive()),
        [
            "1 Phase { name: \"loading\" }",
            "0 Hello { rank: 0, pid: 1, version: 1 }"
        ]
    );
    assert!(
        !path.exists() && !path.parent().unwrap().exists(),
        "all are here: the door is gone"
    );
    assert!(server.receive().is_empty());
}

#[test]
fn what_is_not_understood_is_warned_about_once_and_skipped() {
    let mut server = ControlServer::open(2).unwrap();
    let mut worker = UnixStream::connect(server.path()).unwrap();
    for _ in 0..3 {
        worker
            .write_all(b"{\"event\":\"phase\",\"name\":\"early\"}\nnoise\n")
            .unwrap();
    }
    worker.write_all(&hello(2, 1)).unwrap();
    worker.write_all(&hello(0, 2)).unwrap();
    for _ in 0..3 {
        worker.write_all(b"{\"event\":\"dance\"}\n").unwrap();
        worker
            .write_all(b"{\"event\":\"phase\",\"name\":\"p\",\"speed\":1}\n")
            .unwrap();
    }
    let texts = texts(server.receive());
    let count = |part: &str| texts.iter().filter(|text| text.contains(part)).count();
    for part in [
        "an event before hello",
        "not JSON",
        "a hello as rank 2",
        "version 2 of the protocol",
        "rank 0: ignored the unknown event \"dance\"",
        "the unknown field \"speed\"",
    ] {
        assert_eq!(count(part), 1, "{part}: {texts:?}");
    }
    assert_eq!(count("0 Phase"), 3, "{texts:?}");
}

#[test]
fn a_line_without_end_closes_the_connection() {
    let mut server = ControlServer::open(1).unwrap();
    let mut worker = UnixStream::connect(server.path()).unwrap();
    let writer = std::thread::spawn(move || {
        // Fails once the server has had enough.
        while worker.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let mut seen = Vec::new();
    while server.connections.iter().all(|connection| connection.open) {
        seen.extend(texts(server.receive()));
    }
    server.connections.clear();
    writer.join().unwrap();
    assert!(
        seen.iter().any(|text| text.contains("longer than")),
        "{seen:?}"
    );
}

#[test]
fn a_stop_reaches_those_who_come_later() {
    let mut server = ControlServer::open(3).unwrap();
    let connect = |server: &mut ControlServer, rank| {
        let mut socket = UnixStream::connect(server.path()).unwrap();
        socket.write_all(&hello(rank, 1)).unwrap();
        server.receive();
        BufReader::new(socket)
    };
    let mut early = connect(&mut server, 0);
    server.broadcast(Command::SaveNow);
    server.broadcast(Command::Stop);
    let mut late = connect(&mut server, 1);
    drop(server);
    let mut all = String::new();
    early.read_to_string(&mut all).unwrap();
    assert_eq!(all, "{\"command\":\"save_now\"}\n{\"command\":\"stop\"}\n");
    let mut line = String::new();
    late.read_line(&mut line).unwrap();
    assert_eq!(
        line, "{\"command\":\"stop\"}\n",
        "a save before its time is over"
    );
}

#[test]
fn nobody_else_may_enter_and_what_a_dead_controller_left_goes() {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::tempdir().unwrap();
    let folder_with = |name: &str, owner: Option<&str>| {
        let folder = temporary.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("control.sock"), "").unwrap();
        if let Some(owner) = owner {
            std::fs::write(folder.join("owner.json"), owner).unwrap();
        }
        folder
    };
    let alive = serde_json::to_string(&super::LockOwner::this_process()).unwrap();
    let dead = alive.replace("\"start_ticks\":", "\"start_ticks\":9");
    let abandoned = folder_with("tandem-1", Some(&dead));
    let kept = [
        folder_with("tandem-2", Some(&alive)),
        folder_with("tandem-3", None),
        folder_with("tandem-4", Some("{}")),
        folder_with("mine", Some(&dead)),
    ];
    let with_more = folder_with("tandem-5", Some(&dead));
    std::fs::write(with_more.join("notes"), "mine").unwrap();
    std::os::unix::fs::symlink(&kept[3], temporary.path().join("tandem-6")).unwrap();

    let server = ControlServer::open_in(temporary.path(), 1).unwrap();
    let folder = server.path().parent().unwrap().to_owned();
    let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(!abandoned.exists());
    for folder in kept {
        assert!(folder.join("control.sock").exists(), "{folder:?}");
    }
    assert!(with_more.join("notes").exists());
    drop(server);
    assert!(!folder.exists());
}

#[test]
fn what_one_is_told_only_the_lowest_rank_hears() {
    let mut server = ControlServer::open(3).unwrap();
    server.tell_one(Command::SaveNow);
    let connect = |server: &mut ControlServer, rank| {
        let mut socket = UnixStream::connect(server.path()).unwrap();
        socket.write_all(&hello(rank, 1)).unwrap();
        server.receive();
        socket
    };
    let mut sockets = [2, 1].map(|rank| connect(&mut server, rank));
    server.tell_one(Command::SaveNow);
    drop(server);
    let heard = sockets.each_mut().map(|socket| {
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(heard, ["", "{\"command\":\"save_now\"}\n"]);
}
