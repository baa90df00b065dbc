//! Ranks that must agree and do not.

use std::sync::Arc;

use tandem_comm::testing::{Fault, FaultyGroup, Setup, lines};
use tandem_comm::{ProcessGroup, Transport};
use tandem_parallel::{ParallelError, check_replicas};
use tandem_tensor::Device;
use tandem_trainer::TrainError;

use crate::small::{batch, engine, plain, step};

#[test]
fn a_bit_that_flips_in_a_replicated_parameter_is_found() {
    let setup = Setup::new(
        "disagreement::a_bit_that_flips_in_a_replicated_parameter_is_found",
        2,
        Transport::Shm,
    );
    let outputs = setup.run(|world| {
        let mut engine = engine(&world, 2, 1, plain, plain);
        step(&world, &mut engine, 1, batch(1)).unwrap();
        let check = |engine: &tandem_trainer::Engine, step| {
            let (tp, dp) = (engine.tp.group.as_ref(), engine.dp.as_ref());
            check_replicas(&engine.units, tp, dp, step, Device::Cpu)
        };
        check(&engine, 1).expect("healthy ranks agree");
        if world.rank() == 1 {
            // The input norm of the first layer, of which every rank of the row has a copy.
            let unit = &engine.units[1];
            let norm = "model.layers.0.input_layernorm.weight";
            let params = &unit.layout().params;
            let at = params.iter().find(|p| p.spec.name == norm).unwrap().offset;
            let element = unit.kept_parameters().unwrap().narrow(0, at as i64 + 5, 1);
            // One unit in the last place.
            element.copy_(&(&element * (1.0 + f64::from(f32::EPSILON))));
        }
        let error = check(&engine, 2).expect_err("rank 1 has drifted");
        println!("said {error}");
        let ParallelError::Drift {
            tensor,
            step,
            rank_a,
            rank_b,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(tensor, "model.layers.0.input_layernorm.weight");
        assert_eq!((step, rank_a, rank_b), (2, 0, 1));
    });
    for output in outputs {
        println!("  {:?}", lines(&output, "said "));
    }
}

fn corrupt_on_rank_1(group: Arc<dyn ProcessGroup>) -> Arc<dyn ProcessGroup> {
    match group.rank() {
        1 => Arc::new(FaultyGroup::new(group).with_fault_always(Fault::CorruptResult)),
        _ => group,
    }
}

#[test]
fn a_collective_that_delivers_a_wrong_bit_is_found_at_the_next_check() {
    let setup = Setup::new(
        "disagreement::a_collective_that_delivers_a_wrong_bit_is_found_at_the_next_check",
        2,
        Transport::Shm,
    );
    setup.run(|world| {
        let mut engine = engine(&world, 1, 2, plain, corrupt_on_rank_1);
        // Its own count of targets is off by one bit too, so the step may well fail; the parameters are what counts here.
        let _ = step(&world, &mut engine, 1, batch(1 + world.rank() as u64));
        for unit in &mut engine.units {
            let _whole = unit.unshard(&mut engine.pool).unwrap();
        }
        // The check itself goes over a healthy group.
        let dp = world.new_group("check", &[0, 1]).unwrap();
        let tp = engine.tp.group.clone();
        let result = check_replicas(&engine.units, tp.as_ref(), dp.as_ref(), 1, Device::Cpu);
        assert!(
            matches!(
                result,
                Err(ParallelError::Drift {
                    rank_a: 0,
                    rank_b: 1,
                    ..
                })
            ),
            "{result:?}"
        );
    });
}

#[test]
fn ranks_of_a_row_that_see_different_batches_stop_before_they_train_on_them() {
    let setup = Setup::new(
        "disagreement::ranks_of_a_row_that_see_different_batches_stop_before_they_train_on_them",
        4,
        Transport::Shm,
    );
    setup.run(|world| {
        let mut engine = engine(&world, 2, 2, plain, plain);
        // Sharded by world rank, as a loader that knows nothing of rows would.
        let seed = world.rank() as u64;
        let error = step(&world, &mut engine, 7, batch(seed)).expect_err("batches differ");
        let row = engine.coords.dp_rank * 2;
        match &error {
            TrainError::Parallel(ParallelError::DifferentBatches { step, ranks, .. }) => {
                assert_eq!((*step, ranks.as_slice()), (7, &[row, row + 1][..]));
            }
            other => panic!("{other}"),
        }
        // With the row's own batch it works.
        let seed = engine.coords.dp_rank as u64;
        step(&world, &mut engine, 8, batch(seed)).unwrap();
    });
}

#[test]
fn a_number_that_is_none_stops_all_ranks_before_the_update() {
    let setup = Setup::new(
        "disagreement::a_number_that_is_none_stops_all_ranks_before_the_update",
        2,
        Transport::Shm,
    );
    setup.run(|world| {
        let mut engine = engine(&world, 1, 2, plain, plain);
        step(&world, &mut engine, 1, batch(world.rank() as u64)).unwrap();
        let whole = |engine: &mut tandem_trainer::Engine| {
            let flat = engine.units[1].unshard(&mut engine.pool).unwrap();
            flat.copy()
        };
        let before = whole(&mut engine);
        if world.rank() == 1 {
            let flat = engine.units[1].kept_parameters().unwrap();
            flat.narrow(0, 100, 1).fill_(f64::NAN);
        }
        let error = step(&world, &mut engine, 2, batch(world.rank() as u64))
            .expect_err("rank 1 computes with NaN");
        match &error {
            TrainError::NotFinite { step, ranks, .. } => {
                assert_eq!((*step, ranks.as_slice()), (2, &[1][..]));
            }
            other => panic!("{other}"),
        }
        if world.rank() == 0 {
            assert!(whole(&mut engine).equal(&before), "parameters were updated");
        }
    });
}
