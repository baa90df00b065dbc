//! Several groups at once, and work that overlaps with computation.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tandem_comm::{ProcessGroup, ReduceOp, Totals, Transport, Work, World};
use tandem_tensor::{Kind, Tensor};

use crate::numbers::{assert_bits_equal, data, reduced};
use tandem_comm::testing::{Over, Setup, everyone, lines};

const STEPS: usize = 8;
const LARGE: usize = 700_001;
const SMALL: usize = 3000;

/// Two rows and two columns: every step starts a large reduction over the column, does small ones over the row meanwhile,
/// and gathers over the column while a broadcast goes through everyone.
fn steps(world: &World) -> u64 {
    let rank = world.rank();
    let row_start = rank / 2 * 2;
    let row = world.new_group("tp", &[row_start, row_start + 1]).unwrap();
    let column = world.new_group("dp", &[rank % 2, rank % 2 + 2]).unwrap();
    let all = everyone(world);
    let mut digest = DefaultHasher::new();
    for step in 0..STEPS {
        let kind = if step % 2 == 0 {
            Kind::Float
        } else {
            Kind::BFloat16
        };
        let counts = [LARGE / 3, LARGE - LARGE / 3];
        let start = counts[..column.rank()].iter().sum::<usize>() as i64;
        let len = counts[column.rank()] as i64;

        let gradient = data(rank, LARGE, kind, step);
        let own = gradient.narrow(0, start, len);
        let mut scattering = column
            .reduce_scatter_into(&own, &gradient, &counts, ReduceOp::Sum)
            .unwrap();
        scattering.start();
        for layer in 0..4 {
            let activation = data(rank, SMALL, kind, step * 10 + layer);
            row.all_reduce(&activation, ReduceOp::Sum)
                .and_then(Work::wait)
                .unwrap();
            let of_row = row
                .ranks()
                .iter()
                .map(|peer| data(*peer, SMALL, kind, step * 10 + layer));
            let expected = reduced(&of_row.collect::<Vec<_>>(), ReduceOp::Sum);
            assert_bits_equal("the row's sum", &activation, &expected);
        }
        // Several operations in line: waiting for the last brings the others along.
        let whole = gradient.zeros_like();
        let gathering = column.all_gather_into(&whole, &own, &counts).unwrap();
        let seed = data(rank, 11, Kind::Int64, step);
        all.broadcast(&seed, 3).and_then(Work::wait).unwrap();
        gathering.wait().unwrap();
        assert!(scattering.is_finished());
        scattering.wait().unwrap();

        let of_column = column
            .ranks()
            .iter()
            .map(|peer| data(*peer, LARGE, kind, step));
        let expected = reduced(&of_column.collect::<Vec<_>>(), ReduceOp::Sum);
        assert_bits_equal("the column's sum", &whole, &expected);
        assert_bits_equal("the broadcast", &seed, &data(3, 11, Kind::Int64, step));

        let total = whole.shallow_clone();
        all.all_reduce(&total, ReduceOp::Sum)
            .and_then(Work::wait)
            .unwrap();
        bytes(&total).hash(&mut digest);
    }
    digest.finish()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.view_dtype(Kind::Uint8);
    let mut bytes = vec![0u8; flat.numel()];
    flat.copy_data(&mut bytes, flat.numel());
    bytes
}

#[test]
fn rows_and_columns_at_once_give_the_same_bits_everywhere_and_every_time() {
    const TEST: &str =
        "overlap::rows_and_columns_at_once_give_the_same_bits_everywhere_and_every_time";
    let mut digests = Vec::new();
    for over in [
        Over::Host(Transport::Shm),
        Over::Host(Transport::Tcp),
        Over::Host(Transport::Staged),
        // The simulated one reduces in rank order, which a real one need not.
        Over::Nccl,
        Over::Staged(Transport::Auto),
    ] {
        for run in 0..2 {
            let setup = Setup::new(TEST, 4, over);
            let outputs = setup.run(|world| println!("digest {:016x}", steps(&world)));
            for output in outputs {
                let digest = lines(&output, "digest ").join("");
                println!("  {over:?}, run {run}: {digest}");
                digests.push(digest);
            }
        }
    }
    assert_eq!(digests.len(), 40);
    assert!(digests[0].len() == 16 && digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn observers_see_what_moved_and_where() {
    const TEST: &str = "overlap::observers_see_what_moved_and_where";
    Setup::new(TEST, 2, Transport::Auto).run(|world| {
        let group = everyone(&world);
        group.barrier().and_then(Work::wait).unwrap();
        let totals = Arc::new(Totals::default());
        assert!(world.observe(totals.clone()));
        assert!(!world.observe(totals.clone()), "the first observer stays");
        let tensor = data(0, 1000, Kind::Float, 0);
        let mut work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
        work.start();
        work.wait().unwrap();
        group.broadcast(&tensor, 0).and_then(Work::wait).unwrap();
        let seen = totals.snapshot();
        println!("{seen:?}");
        assert_eq!(seen.len(), 1);
        assert_eq!((&*seen[0].group, seen[0].operations), ("all", 2));
        assert_eq!(seen[0].bytes, 8000);
        assert!(!seen[0].inside.is_zero() && !seen[0].waited.is_zero());
        let _: &dyn ProcessGroup = &*group;
    });
}
