//! What groups of devices say when the driver, NCCL or a peer fails: on simulated GPUs, where failures come on demand.

use std::time::{Duration, Instant};

use tandem_comm::testing::{Over, Setup, everyone, lines, meet};
use tandem_comm::{CommError, ProcessGroup, ReduceOp, Transport, Work, World};
use tandem_simulated::FAULTS;
use tandem_tensor::Kind;

use crate::numbers::{assert_bits_equal, data};

/// Time for what waits for a timeout; also the time in which ranks must meet.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Nothing here may take longer, on a busy machine either.
const SOON: Duration = Duration::from_secs(60);

fn reduce(group: &dyn ProcessGroup) -> Result<(), CommError> {
    let tensor = data(group.rank(), 10_000, Kind::Float, 0);
    group
        .all_reduce(&tensor, ReduceOp::Sum)
        .and_then(Work::wait)
}

/// What the first failure of a few reductions is, of one of the ranks that go on to live. (A rank may have its result before another
/// one fails.)
fn failure(world: &World, living: &[usize]) -> String {
    let group = everyone(world);
    let begin = Instant::now();
    let error = (0..10).find_map(|_| reduce(&*group).err());
    let text = error.expect("one of them fails").to_string();
    println!("said {text}");
    assert!(begin.elapsed() < SOON, "noticed too late");
    // The group is closed, or the device is of no more use.
    reduce(&*group).expect_err("later operations fail, too");
    // Not before the others have seen it, or this one's end would be another failure.
    meet("seen", world.rank(), living.iter().copied());
    text
}

/// Three ranks, of which rank 1 has `fault`; what each says.
fn with_fault(test: &'static str, over: Over, fault: &str) -> [String; 3] {
    let setup = Setup::new(test, 3, over)
        .timeout(TIMEOUT)
        .variable(1, FAULTS, fault);
    let outputs = setup.run(|world| drop(failure(&world, &[0, 1, 2])));
    let said = |output: &String| lines(output, "said ").join("");
    let said: Vec<String> = outputs.iter().map(said).collect();
    for (rank, text) in said.iter().enumerate() {
        println!("  {fault}: rank {rank}: {text}");
    }
    said.try_into().unwrap_or_default()
}

/// What rank 1 says is its own failure, and the others name it with rank 1's words.
fn names_rank_1(said: &[String; 3], what: &str) {
    if said.iter().all(String::is_empty) {
        // In a rank.
        return;
    }
    assert!(said[1].contains(what), "{}", said[1]);
    for rank in [0, 2] {
        let text = &said[rank];
        assert!(text.starts_with("rank 1 aborted: "), "rank {rank}: {text}");
        assert!(text.contains(what), "rank {rank}: {text}");
    }
}

#[test]
fn calls_that_fail_are_named_with_the_librarys_words() {
    const TEST: &str = "devices::calls_that_fail_are_named_with_the_librarys_words";
    for (fault, what) in [
        (
            "ncclAllReduce:2:error=1",
            "NCCL failed during all_reduce #2 of group \"all\": unhandled cuda error",
        ),
        ("cuEventRecord:9:error=2", "CUDA failed during all_reduce #"),
        (
            "cuEventQuery:3:broken=700",
            "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)",
        ),
        (
            "ncclAllReduce:3:async=6",
            "NCCL failed during all_reduce #3 of group \"all\": remote process exited",
        ),
    ] {
        names_rank_1(&with_fault(TEST, Over::Nccl, fault), what);
    }
}

#[test]
fn what_never_ends_is_aborted_after_the_timeout() {
    const TEST: &str = "devices::what_never_ends_is_aborted_after_the_timeout";
    // In the kernel, and in the call.
    for fault in ["ncclAllReduce:2:stuck", "ncclAllReduce:2:blocked"] {
        for (rank, text) in with_fault(TEST, Over::Nccl, fault).iter().enumerate() {
            let is_said = text.is_empty()
                || text.contains("no answer from rank") && text.contains("all_reduce #2");
            assert!(is_said, "rank {rank}: {text}");
        }
    }
}

#[test]
fn a_death_that_nccl_notices_first_is_still_named() {
    const TEST: &str = "devices::a_death_that_nccl_notices_first_is_still_named";
    let setup = Setup::new(TEST, 3, Over::Nccl)
        .victims(&[1])
        .variable(0, FAULTS, "lost:1:async=6")
        .variable(1, FAULTS, "ncclAllReduce:2:die")
        .variable(2, FAULTS, "lost:1:async=6");
    let outputs = setup.run(|world| drop(failure(&world, &[0, 2])));
    for rank in [0, 2].into_iter().filter(|rank| *rank < outputs.len()) {
        let said = lines(&outputs[rank], "said ").join("");
        assert_eq!(said, "rank 1 left during all_reduce #2 of group \"all\"");
    }
}

/// Who has done its part may leave, though the others' devices are not done with theirs.
#[test]
fn a_goodbye_after_the_last_operation_is_no_failure() {
    const TEST: &str = "devices::a_goodbye_after_the_last_operation_is_no_failure";
    let late = "ncclBroadcast:3:late";
    let setup = Setup::new(TEST, 2, Over::Nccl).variable(1, FAULTS, late);
    setup.run(|world| {
        let group = everyone(&world);
        for salt in 0..3 {
            let tensor = data(world.rank(), 5000, Kind::Float, salt);
            group.broadcast(&tensor, 0).and_then(Work::wait).unwrap();
            let expected = data(0, 5000, Kind::Float, salt);
            assert_bits_equal("the broadcast", &tensor, &expected);
        }
    });
}

#[test]
fn memory_that_cannot_be_had_is_an_error_everywhere() {
    const TEST: &str = "devices::memory_that_cannot_be_had_is_an_error_everywhere";
    let over = Over::Staged(Transport::Auto);
    let said = with_fault(TEST, over, "cuMemHostAlloc:1:error=2");
    let what = "40000 bytes of pinned host memory cannot be had: out of memory";
    names_rank_1(&said, what);
}

#[test]
fn a_group_that_cannot_be_made_keeps_nobody_waiting() {
    const TEST: &str = "devices::a_group_that_cannot_be_made_keeps_nobody_waiting";
    for fault in [
        "cuMemAlloc_v2:1:error=2",
        "ncclCommInitRank:1:error=2",
        "cuStreamCreate:1:error=2",
        "cuInit:1:error=100",
    ] {
        let setup = Setup::new(TEST, 2, Over::Nccl).variable(1, FAULTS, fault);
        let outputs = setup.run(|world| {
            let begin = Instant::now();
            let error = world.new_group("all", &[0, 1]).err();
            println!("said {}", error.expect("no group"));
            assert!(begin.elapsed() < SOON, "noticed too late");
        });
        for (rank, output) in outputs.iter().enumerate() {
            println!(
                "  {fault}: rank {rank}: {}",
                lines(output, "said ").join("")
            );
        }
    }
}

/// The negative of all other tests here: what the simulated GPU is for is noticed.
#[test]
fn host_access_to_device_memory_ends_the_process() {
    const TEST: &str = "devices::host_access_to_device_memory_ends_the_process";
    let setup = Setup::new(TEST, 2, Over::Nccl).victims(&[0, 1]);
    let outputs = setup.run(|world| {
        let group = everyone(&world);
        reduce(&*group).unwrap();
        println!("said the groups work");
        tandem_comm::testing::touch_device_memory();
        println!("said it went well");
    });
    for output in outputs {
        assert_eq!(lines(&output, "said "), ["the groups work"]);
    }
}
