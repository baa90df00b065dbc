//! A peer that dies, or hangs, in the middle of a step: the others leave with an error that names it, what they were doing
//! and the step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_comm::testing::{Fault, FaultyGroup, Setup, lines};
use tandem_comm::{ProcessGroup, Transport};

use crate::small::{batch, engine, plain, step};

/// Deep inside of a step's row collectives.
const NTH: u64 = 9;

fn dies(group: Arc<dyn ProcessGroup>) -> Arc<dyn ProcessGroup> {
    match group.ranks()[group.rank()] {
        1 => Arc::new(FaultyGroup::new(group).with_fault_at(NTH, Fault::Kill)),
        _ => group,
    }
}

fn hangs(group: Arc<dyn ProcessGroup>) -> Arc<dyn ProcessGroup> {
    match group.ranks()[group.rank()] {
        1 => {
            let pause = Fault::Delay(Duration::from_secs(3600));
            Arc::new(FaultyGroup::new(group).with_fault_at(NTH, pause))
        }
        _ => group,
    }
}

/// Trains until it cannot, and says how it ended and how long the last step took.
fn train_until_it_fails(world: &tandem_comm::World, wrap: crate::small::Wrap) {
    let mut engine = engine(world, 2, world.size() / 2, wrap, plain);
    for number in 1.. {
        let begin = Instant::now();
        let seed = engine.coords.dp_rank as u64;
        if let Err(error) = step(world, &mut engine, number, batch(seed)) {
            let is_secondary = error.comm_error().is_some_and(|e| e.is_secondary());
            println!(
                "ended after {:.2} s, secondary {is_secondary}: {error}",
                begin.elapsed().as_secs_f64()
            );
            return;
        }
    }
}

fn check(outputs: &[String], limit_s: f64, cause: &str) {
    for (rank, output) in outputs.iter().enumerate() {
        if rank == 1 {
            continue;
        }
        // A time-out is the waiting rank's own finding, everything else follows from another rank's.
        let text = lines(output, "ended after ").join("\n");
        println!("  rank {rank}: {text}");
        let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!(seconds < limit_s, "rank {rank} noticed after {seconds} s");
        for word in [cause, "rank 1", "step "] {
            assert!(
                text.contains(word),
                "rank {rank} does not say {word:?}: {text}"
            );
        }
        assert!(
            ["all_reduce", "all_gather", "reduce_scatter", "barrier"]
                .iter()
                .any(|collective| text.contains(collective)),
            "rank {rank} names no collective: {text}"
        );
    }
}

#[test]
fn a_peer_that_dies_in_a_step_is_named_by_all_others_over_shared_memory() {
    let name = "peers::a_peer_that_dies_in_a_step_is_named_by_all_others_over_shared_memory";
    let setup = Setup::new(name, 4, Transport::Shm).victims(&[1]);
    check(
        &setup.run(|world| train_until_it_fails(&world, dies)),
        20.0,
        "secondary true",
    );
}

#[test]
fn a_peer_that_dies_in_a_step_is_named_by_all_others_over_tcp() {
    let name = "peers::a_peer_that_dies_in_a_step_is_named_by_all_others_over_tcp";
    let setup = Setup::new(name, 4, Transport::Tcp).victims(&[1]);
    check(
        &setup.run(|world| train_until_it_fails(&world, dies)),
        20.0,
        "secondary true",
    );
}

#[test]
fn a_peer_that_hangs_in_a_step_is_named_by_all_others_after_the_timeout() {
    let name = "peers::a_peer_that_hangs_in_a_step_is_named_by_all_others_after_the_timeout";
    // One row. In several, all wait and give up at the same moment, and who waits for a rank that waits can only name that one.
    let setup = Setup::new(name, 2, Transport::Shm)
        .victims(&[1])
        .timeout(Duration::from_secs(5));
    let outputs = setup.run(|world| train_until_it_fails(&world, hangs));
    check(&outputs, 30.0, "no answer from");
}
