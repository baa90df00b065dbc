//! Two hosts of two workers each, made of network namespaces with a link between them: rows in shared memory, columns
//! over TCP.
//!
//! Where namespaces are not permitted, the ranks talk TCP over two loopback addresses instead, and the test says so.

use std::process::Command;
use std::time::Duration;

use crate::demo;
use crate::hosts::Hosts;
use crate::workers::{
    Ended, Workers, assert_as_local, assert_whole, free_port, long, plain, short, torchrun,
};

/// How long ranks wait for each other. A step takes a fraction of it, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(8);

#[test]
fn two_hosts_train_as_one() {
    match Hosts::make("parity", 2) {
        Ok(hosts) => {
            let run = short();
            let variables = torchrun(4, 2, &Hosts::address(0), free_port());
            let wrap = |rank, command: Command| hosts.wrap(rank / 2, &command);
            Workers::start(&run, 4, variables, wrap).succeed();
            assert_as_local(&run, 4);
        }
        Err(refused) => {
            println!("{refused}");
            println!("the ranks talk over loopback addresses instead");
            let run = short().args(["--transport", "tcp"]);
            let variables = torchrun(4, 2, "127.0.0.2", free_port());
            Workers::start(&run, 4, variables, plain).succeed();
            assert_as_local(&run, 4);
        }
    }
}

#[test]
fn a_host_that_is_cut_off_is_an_error_in_time_and_a_restart_recovers() {
    let seconds = TIMEOUT.as_secs().to_string();
    let run = long().args(["--comm_timeout_s", &seconds]);
    let limit = 2 * TIMEOUT + Duration::from_secs(20);
    let port = free_port();
    match Hosts::make("cut", 2) {
        Ok(hosts) => {
            let variables = torchrun(4, 2, &Hosts::address(0), port);
            let wrap = |rank, command: Command| hosts.wrap(rank / 2, &command);
            let mut workers = Workers::start(&run, 4, &variables, wrap);
            run.wait_for_steps(3);
            hosts.link(0, "down");
            assert_silence(&workers.end_within(limit));
            // The link heals, and the launcher starts all again.
            hosts.link(0, "up");
            Workers::start(&run, 4, &variables, wrap).succeed();
            assert_whole(&run);
        }
        Err(refused) => {
            println!("{refused}");
            println!("no link to cut: the workers of the second host are stopped instead");
            let run = run.args(["--transport", "tcp"]);
            let variables = torchrun(4, 2, "127.0.0.2", port);
            let mut workers = Workers::start(&run, 4, &variables, plain);
            run.wait_for_steps(3);
            let stopped = workers.split_off(2);
            for rank in 0..2 {
                demo::kill(stopped.pid(rank), "STOP");
            }
            assert_silence(&workers.end_within(limit));
            drop(stopped);
            Workers::start(&run, 4, &variables, plain).succeed();
            assert_whole(&run);
        }
    }
}

/// The ends of ranks that waited in vain: who was not heard of, and in which collective.
fn assert_silence(ended: &[Ended]) {
    for (rank, ended) in ended.iter().enumerate() {
        println!("rank {rank} ended {:?} after the cut", ended.after);
        assert_eq!(ended.code, Some(1), "rank {rank}: {}", ended.text);
        assert!(ended.after < TIMEOUT + Duration::from_secs(15));
        let last = ended.text.lines().last().unwrap_or_default();
        let named = last.contains(" left during ") || last.contains("no answer from rank");
        assert!(named && last.contains("(step "), "{last}");
    }
    // A host that fell silent did not leave: at least one rank of each host that waited says so.
    for host in ended.chunks(2) {
        let silence = |ended: &Ended| ended.text.contains("no answer from rank");
        assert!(host.iter().any(silence), "{host:#?}");
    }
}
