//! What ranks say when one of them dies, stops, aborts, leaves or does something else.

use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use tandem_comm::testing::{
    Fault, FaultyGroup, Over, Setup, await_sign, everyone, leave_sign, lines, meet,
};
use tandem_comm::{CommError, ProcessGroup, ReduceOp, Transport, Work, World};
use tandem_tensor::{Kind, Tensor};

use crate::numbers::data;

/// The promise is two seconds; a busy machine may take longer for anything.
const SOON: Duration = Duration::from_secs(60);

/// Also the time in which ranks must meet, so not too short for a busy machine.
const STOPPED_TIMEOUT: Duration = Duration::from_secs(8);

/// Every way to move data.
const EVERY_WAY: [Over; 4] = [
    Over::Host(Transport::Shm),
    Over::Host(Transport::Tcp),
    Over::Nccl,
    Over::Staged(Transport::Auto),
];

fn tensor(len: usize) -> Tensor {
    data(0, len, Kind::Float, 0)
}

fn reduce(group: &dyn ProcessGroup, tensor: &Tensor) -> Result<(), CommError> {
    group.all_reduce(tensor, ReduceOp::Sum).and_then(Work::wait)
}

/// Runs `operation`, which must fail soon, and returns what it said.
fn failure(operation: impl FnOnce() -> Result<(), CommError>) -> CommError {
    let begin = Instant::now();
    let error = operation().expect_err("a rank is missing");
    println!(
        "failed after {:.2} s: {error}",
        begin.elapsed().as_secs_f64()
    );
    assert!(begin.elapsed() < SOON, "noticed too late");
    error
}

fn show(outputs: &[String]) {
    for (rank, output) in outputs.iter().enumerate() {
        for line in lines(output, "failed after ") {
            println!("  rank {rank} failed after {line}");
        }
    }
}

fn killed(test: &'static str, over: Over) {
    let setup = Setup::new(test, 3, over).victims(&[1]);
    show(&setup.run(|world| {
        let group = everyone(&world);
        reduce(&*group, &tensor(100_000)).unwrap();
        world.set_step(40);
        if world.rank() == 1 {
            // The others are in the collective by then.
            std::thread::sleep(Duration::from_millis(300));
            let group = FaultyGroup::new(group).with_fault_at(1, Fault::Kill);
            reduce(&group, &tensor(100_000)).unwrap();
            unreachable!("this rank is dead");
        }
        let error = failure(|| reduce(&*group, &tensor(100_000)));
        assert_eq!(
            error.to_string(),
            "rank 1 left during all_reduce #2 of group \"all\" (step 40)"
        );
        assert!(error.is_secondary());
        let later = group.barrier().err().expect("the group is closed");
        assert!(matches!(later, CommError::Poisoned { .. }), "{later}");
        assert!(
            later
                .to_string()
                .contains("rank 1 left during all_reduce #2")
        );
    }));
}

/// The same while ranks send each other their parts.
fn killed_in_an_exchange(test: &'static str, transport: Transport) {
    let setup = Setup::new(test, 3, transport).victims(&[1]);
    show(&setup.run(|world| {
        let group = everyone(&world);
        let exchange = |group: &dyn ProcessGroup| {
            let (input, output) = (tensor(90_000), tensor(90_000));
            let work = group.all_to_all_into(&output, &input, &[30_000; 9])?;
            work.wait()
        };
        exchange(&*group).unwrap();
        world.set_step(40);
        if world.rank() == 1 {
            // The others are in the collective by then.
            std::thread::sleep(Duration::from_millis(300));
            let group = FaultyGroup::new(group).with_fault_at(1, Fault::Kill);
            exchange(&group).unwrap();
            unreachable!("this rank is dead");
        }
        let error = failure(|| exchange(&*group));
        assert_eq!(
            error.to_string(),
            "rank 1 left during all_to_all #2 of group \"all\" (step 40)"
        );
    }));
}

#[test]
fn a_peer_that_is_killed_in_an_exchange_is_named_over_shared_memory() {
    killed_in_an_exchange(
        "failures::a_peer_that_is_killed_in_an_exchange_is_named_over_shared_memory",
        Transport::Shm,
    );
}

#[test]
fn a_peer_that_is_killed_in_an_exchange_is_named_over_tcp() {
    killed_in_an_exchange(
        "failures::a_peer_that_is_killed_in_an_exchange_is_named_over_tcp",
        Transport::Tcp,
    );
}

#[test]
fn a_killed_peer_is_named_over_shared_memory() {
    const TEST: &str = "failures::a_killed_peer_is_named_over_shared_memory";
    killed(TEST, Over::Host(Transport::Shm));
}

#[test]
fn a_killed_peer_is_named_over_tcp() {
    const TEST: &str = "failures::a_killed_peer_is_named_over_tcp";
    killed(TEST, Over::Host(Transport::Tcp));
}

#[test]
fn a_killed_peer_is_named_over_nccl() {
    const TEST: &str = "failures::a_killed_peer_is_named_over_nccl";
    killed(TEST, Over::Nccl);
}

#[test]
fn a_killed_peer_is_named_over_devices_through_host_memory() {
    const TEST: &str = "failures::a_killed_peer_is_named_over_devices_through_host_memory";
    killed(TEST, Over::Staged(Transport::Auto));
}

fn stopped(test: &'static str, over: Over) {
    let setup = Setup::new(test, 3, over)
        .victims(&[1])
        .timeout(STOPPED_TIMEOUT);
    show(&setup.run(|world| {
        let group = everyone(&world);
        reduce(&*group, &tensor(1000)).unwrap();
        if world.rank() == 1 {
            kill_process(getpid(), Signal::STOP).unwrap();
            // The signal may go to another thread first, which then stops this one.
            std::thread::sleep(Duration::from_secs(60));
        }
        let error = failure(|| reduce(&*group, &tensor(1000)));
        // One rank's clock runs out first; it tells the other.
        let text = error.to_string();
        assert!(text.contains("no answer from rank 1 within 8 s"), "{text}");
        assert!(text.contains("all_reduce #2 of group \"all\""), "{text}");
    }));
}

#[test]
fn a_stopped_peer_is_a_timeout_over_shared_memory() {
    const TEST: &str = "failures::a_stopped_peer_is_a_timeout_over_shared_memory";
    stopped(TEST, Over::Host(Transport::Shm));
}

#[test]
fn a_stopped_peer_is_a_timeout_over_tcp() {
    const TEST: &str = "failures::a_stopped_peer_is_a_timeout_over_tcp";
    stopped(TEST, Over::Host(Transport::Tcp));
}

#[test]
fn a_stopped_peer_is_a_timeout_over_nccl() {
    const TEST: &str = "failures::a_stopped_peer_is_a_timeout_over_nccl";
    stopped(TEST, Over::Nccl);
}

#[test]
fn a_stopped_peer_is_a_timeout_over_devices_through_host_memory() {
    const TEST: &str = "failures::a_stopped_peer_is_a_timeout_over_devices_through_host_memory";
    stopped(TEST, Over::Staged(Transport::Auto));
}

/// Rank 0, in a row with rank 1, waits for rank 1, which waits for rank 3 in their column; rank 2 waits for rank 3 too.
#[test]
fn everyone_names_the_rank_that_failed_first() {
    const TEST: &str = "failures::everyone_names_the_rank_that_failed_first";
    for over in EVERY_WAY {
        let setup = Setup::new(TEST, 4, over).victims(&[3]);
        show(&setup.run(|world| {
            let rank = world.rank();
            let row = world
                .new_group("tp", &[rank / 2 * 2, rank / 2 * 2 + 1])
                .unwrap();
            let column = world.new_group("dp", &[rank % 2, rank % 2 + 2]).unwrap();
            reduce(&*row, &tensor(10)).unwrap();
            reduce(&*column, &tensor(10)).unwrap();
            if rank == 3 {
                std::thread::sleep(Duration::from_millis(300));
                kill_process(getpid(), Signal::KILL).unwrap();
            }
            let group = if rank == 1 { &column } else { &row };
            let error = failure(|| reduce(&**group, &tensor(10)));
            assert!(
                error.to_string().starts_with("rank 3 left during"),
                "{error}"
            );
            // Not before the others have seen the first failure, or this one's end would count as another.
            meet("seen", rank, 0..3);
        }));
    }
}

#[test]
fn an_abort_reaches_everyone_with_its_reason() {
    const TEST: &str = "failures::an_abort_reaches_everyone_with_its_reason";
    let setup = Setup::new(TEST, 3, Transport::Auto);
    show(&setup.run(|world| {
        let group = everyone(&world);
        reduce(&*group, &tensor(10)).unwrap();
        if world.rank() == 2 {
            std::thread::sleep(Duration::from_millis(300));
            world.abort("the loss is NaN in step 7");
            return;
        }
        let error = failure(|| reduce(&*group, &tensor(10)));
        let text = error.to_string();
        assert!(
            text.starts_with("rank 2 aborted: the loss is NaN in step 7"),
            "{text}"
        );
    }));
}

/// Whoever has finished may leave, rank 0 with its store included, while others go on in groups of their own.
#[test]
fn a_rank_that_has_finished_may_leave() {
    const TEST: &str = "failures::a_rank_that_has_finished_may_leave";
    let cases = EVERY_WAY.map(|over| [(3, over, 2), (4, over, 0)]);
    for (ranks, over, leaver) in cases.into_iter().flatten() {
        let outputs = Setup::new(TEST, ranks, over).run(|world| {
            let others: Vec<usize> = (0..world.size()).filter(|rank| *rank != leaver).collect();
            let all = everyone(&world);
            if world.rank() == leaver {
                reduce(&*all, &tensor(100_000)).unwrap();
                return;
            }
            let group = world.new_group("others", &others).unwrap();
            reduce(&*all, &tensor(100_000)).unwrap();
            for _ in 0..5 {
                // Ranks take turns to be late, so that the others look around.
                for late in &others {
                    if world.rank() == *late {
                        std::thread::sleep(Duration::from_millis(80));
                    }
                    reduce(&*group, &tensor(10)).unwrap();
                }
            }
            let error = failure(|| reduce(&*all, &tensor(10)));
            let expected = format!("rank {leaver} left during all_reduce #2 of group \"all\"");
            assert!(error.to_string().starts_with(&expected), "{error}");
            meet("seen", world.rank(), others);
        });
        show(&outputs);
    }
}

/// Process descriptors of this process.
fn watched() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = open.flatten().flat_map(|entry| entry.path().read_link());
    let is_process = |link: &std::path::PathBuf| link.to_string_lossy().contains("pidfd");
    links.filter(is_process).count()
}

/// Each member watches one other. When two in a row are killed, and rank 0 with its store has left, the member before them tells
/// those that watch somebody else.
#[test]
fn a_death_is_noticed_by_all_though_each_watches_one() {
    const TEST: &str = "failures::a_death_is_noticed_by_all_though_each_watches_one";
    let setup = Setup::new(TEST, 6, Transport::Shm).victims(&[2, 3]);
    show(&setup.run(|world| {
        let all = everyone(&world);
        assert_eq!(watched(), 1, "of five others");
        if world.rank() == 0 {
            reduce(&*all, &tensor(10)).unwrap();
            return;
        }
        let group = world.new_group("others", &[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(watched(), 2, "one for each group");
        reduce(&*all, &tensor(10)).unwrap();
        reduce(&*group, &tensor(10)).unwrap();
        if matches!(world.rank(), 2 | 3) {
            // Rank 0 is gone by then, and the others are in the collective.
            std::thread::sleep(Duration::from_millis(500));
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        let error = failure(|| reduce(&*group, &tensor(10)));
        assert!(
            error.to_string().starts_with("rank 2 left during"),
            "{error}"
        );
        // Not before the others have seen it, or this one's end would count as another.
        meet("seen", world.rank(), [1, 4, 5]);
    }));
}

/// What two ranks do differently, and what the message must say of each.
type Disagreement = (
    fn(&dyn ProcessGroup, bool) -> Result<Work, CommError>,
    [&'static str; 2],
);

const DISAGREEMENTS: [Disagreement; 7] = [
    (
        |group, is_odd| group.all_reduce(&tensor(if is_odd { 12 } else { 10 }), ReduceOp::Sum),
        [
            "all_reduce(sum) of 10 f32 elements as operation #2",
            "all_reduce(sum) of 12 f32 elements as operation #2",
        ],
    ),
    (
        |group, is_odd| {
            group.all_reduce(
                &tensor(300_000),
                if is_odd { ReduceOp::Max } else { ReduceOp::Sum },
            )
        },
        ["all_reduce(sum)", "all_reduce(max)"],
    ),
    (
        |group, is_odd| {
            if is_odd {
                group.barrier()
            } else {
                group.broadcast(&tensor(2_000_000), 0)
            }
        },
        ["broadcast from group rank 0 of 2000000 f32", "barrier"],
    ),
    (
        |group, is_odd| {
            let kind = if is_odd { Kind::BFloat16 } else { Kind::Int };
            group.broadcast(&tensor(8).to_kind(kind), 1)
        },
        ["of 8 i32", "of 8 bf16"],
    ),
    (
        |group, is_odd| {
            let counts = if is_odd { [3, 5] } else { [4, 4] };
            let own = tensor(counts[group.rank()]);
            group.all_gather_into(&tensor(8), &own, &counts)
        },
        [
            "all_gather of 8 f32 elements (split ",
            "all_gather of 8 f32",
        ],
    ),
    (
        |group, is_odd| {
            // Each gets what it expects, but of another rank.
            let counts = if is_odd { [1, 3, 3, 1] } else { [3, 1, 1, 3] };
            group.all_to_all_into(&tensor(4), &tensor(4), &counts)
        },
        [
            "all_to_all of 8 f32 elements (split ",
            "all_to_all of 8 f32",
        ],
    ),
    (
        |group, is_odd| match is_odd {
            true => group.all_to_all_into(&tensor(4), &tensor(4), &[2; 4]),
            false => group.all_gather_into(&tensor(8), &tensor(4), &[4; 2]),
        },
        ["all_gather of 8 f32", "all_to_all of 8 f32"],
    ),
];

/// NCCL carries out a sum on one rank and a maximum on the other, and neither is the wiser.
const SAME_TO_NCCL: usize = 1;

#[test]
fn ranks_that_do_different_things_are_told_so() {
    const TEST: &str = "failures::ranks_that_do_different_things_are_told_so";
    for over in EVERY_WAY {
        // Over NCCL, ranks compare when one of them has waited for an eighth of it.
        let setup = Setup::new(TEST, 2, over).timeout(Duration::from_secs(16));
        let outputs = setup.run(|world| {
            let everybody = everyone(&world);
            for (number, (operation, expected)) in DISAGREEMENTS.iter().enumerate() {
                if over == Over::Nccl && number == SAME_TO_NCCL {
                    continue;
                }
                let group = world.new_group(&format!("g{number}"), &[0, 1]).unwrap();
                group.barrier().and_then(Work::wait).unwrap();
                let is_odd = world.rank() == 1;
                let operation = || operation(&*group, is_odd).and_then(Work::wait);
                // What NCCL is done with on one of the ranks is noticed when the other waits.
                let error = failure(|| operation().and_then(|()| group.barrier()?.wait()));
                let first = match &error {
                    CommError::Poisoned { first, .. } if over == Over::Nccl => first,
                    error => error,
                };
                assert!(matches!(first, CommError::Mismatch { .. }), "{error}");
                for part in expected {
                    assert!(error.to_string().contains(part), "{error} lacks {part}");
                }
            }
            everybody.barrier().and_then(Work::wait).unwrap();
        });
        show(&outputs);
    }
}

#[test]
fn work_that_nobody_waits_for_is_done_all_the_same() {
    const TEST: &str = "failures::work_that_nobody_waits_for_is_done_all_the_same";
    for over in EVERY_WAY {
        Setup::new(TEST, 2, over).run(|world| {
            let group = everyone(&world);
            let tensor = data(world.rank(), 1_000_000, Kind::Float, 0);
            let work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
            if world.rank() == 0 {
                drop(work);
                drop(tensor);
                std::thread::sleep(Duration::from_millis(100));
            } else {
                work.wait().unwrap();
            }
            group.barrier().and_then(Work::wait).unwrap();
        });
    }
}

#[test]
fn dropping_a_group_abandons_its_work_and_tells_the_peers() {
    const TEST: &str = "failures::dropping_a_group_abandons_its_work_and_tells_the_peers";
    for over in EVERY_WAY {
        let outputs = Setup::new(TEST, 2, over).run(|world: World| {
            let group = everyone(&world);
            let big = tensor(1_000_000);
            if world.rank() == 0 {
                let mut work = group.all_reduce(&big, ReduceOp::Sum).unwrap();
                work.start();
                std::thread::sleep(Duration::from_millis(100));
                drop(group);
                let error = failure(|| work.wait());
                assert!(matches!(error, CommError::Abandoned { .. }), "{error}");
                leave_sign("abandoned");
                // Alive and well: it is the group that it left.
                await_sign("told");
                return;
            }
            await_sign("abandoned");
            let error = failure(|| reduce(&*group, &big));
            assert!(
                error
                    .to_string()
                    .starts_with("rank 0 left during all_reduce #1"),
                "{error}"
            );
            leave_sign("told");
        });
        show(&outputs);
    }
}
