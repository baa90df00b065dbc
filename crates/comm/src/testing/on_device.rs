//! Tests of groups with nothing but memory on a (simulated) device, as libtorch's tensors are: no host in between.

use std::sync::Arc;

use tandem_tensor::{Device, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::group::member::Member;
use crate::group::operation::{Arguments, Operation};
use crate::group::work::Work;
use crate::meet::board::Board;
use crate::testing::{Over, Setup, lines};
use crate::transport::cuda::open;
use crate::transport::device::{CudaDevice, DeviceMemory, download, upload};
use crate::transport::nccl::library::Library;
use crate::transport::nccl::{self, NcclGroup};
use crate::world::World;

const LEN: usize = 50_000;

/// A rank with a group over NCCL and a tensor on its device, all of whose elements are the rank's number.
struct Rank {
    device: Arc<CudaDevice>,
    memory: DeviceMemory,
    group: NcclGroup,
}

impl Rank {
    fn new(world: &World) -> Self {
        let rank = world.rank();
        let group = world.everyone_by(|context, point, membership| {
            let site = context.creation();
            let board = Board::new(point.clone(), membership.key(), context.rank, site);
            let device = (open(&context, rank).unwrap(), rank);
            let library = Library::open().unwrap();
            nccl::create(context, membership, board, device, library).unwrap()
        });
        let device = Arc::new(CudaDevice::open(rank).unwrap());
        let memory = DeviceMemory::new(device.clone(), LEN * size_of::<f32>()).unwrap();
        let values = vec![rank as f32 + 1.0; LEN];
        // SAFETY: both are as long, and the stand-in copies pageable memory at once, as a driver does.
        unsafe {
            let bytes = values.len() * size_of::<f32>();
            upload(
                &device.compute,
                values.as_ptr().cast(),
                memory.as_ptr(),
                bytes,
            )
            .unwrap();
        }
        Self {
            device,
            memory,
            group,
        }
    }

    /// The sum over all ranks, in place.
    fn operation(&self) -> Operation {
        // It says how many elements of which kind; the memory is another.
        let like = Tensor::from_slice(&vec![0.0f32; LEN]);
        let arguments = Arguments {
            device: Device::Cpu,
            ..self.group.arguments(Collective::AllReduce)
        };
        let operation = arguments.all_reduce(&like, ReduceOp::Sum).unwrap();
        operation.moved(self.memory.as_ptr(), self.memory.as_ptr(), None)
    }

    fn submit(&self) -> Work {
        self.group.submit(self.operation()).unwrap()
    }

    /// What a computation on the default stream sees.
    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0f32; LEN];
        let bytes = LEN * size_of::<f32>();
        // SAFETY: both are as long, and the copy into pageable memory is done when this returns.
        unsafe {
            let target = values.as_mut_ptr().cast();
            download(&self.device.compute, self.memory.as_ptr(), target, bytes).unwrap();
        }
        values
    }
}

const RANKS: usize = 2;

fn run(test: &'static str, victims: &[usize], body: impl FnOnce(World)) -> Vec<String> {
    Setup::new(test, RANKS, Over::Nccl)
        .victims(victims)
        .run(body)
}

#[test]
fn what_was_waited_for_is_done_even_if_the_group_is_dropped() {
    const TEST: &str =
        "testing::on_device::what_was_waited_for_is_done_even_if_the_group_is_dropped";
    run(TEST, &[], |world| {
        let rank = Rank::new(&world);
        for _ in 0..5 {
            rank.submit().wait().unwrap();
        }
        let Rank {
            device,
            memory,
            group,
        } = rank;
        drop(group);
        let rank = Rank {
            device,
            memory,
            group: Rank::new(&world).group,
        };
        // 1 + 2, doubled four times.
        assert_eq!(rank.values(), vec![48.0; LEN]);
    });
}

#[test]
fn the_default_stream_waits_and_the_host_does_not() {
    const TEST: &str = "testing::on_device::the_default_stream_waits_and_the_host_does_not";
    run(TEST, &[], |world| {
        let rank = Rank::new(&world);
        for round in 0..50 {
            let work = rank.submit();
            if round % 2 == 0 {
                work.wait().unwrap();
            } else {
                // Who drops it gives the memory back to the default stream.
                drop(work);
            }
        }
        let sum = 3.0 * 2f32.powi(49);
        assert_eq!(rank.values(), vec![sum; LEN]);
        rank.group.check_done().unwrap();
    });
}

/// The negative of the one above: who does not wait is noticed, every time.
#[test]
fn a_missing_wait_ends_the_process() {
    const TEST: &str = "testing::on_device::a_missing_wait_ends_the_process";
    let outputs = run(TEST, &[0, 1], |world| {
        let rank = Rank::new(&world);
        let work = rank.submit();
        println!("said before");
        println!("said {:?}", rank.values().first());
        work.wait().unwrap();
    });
    for output in outputs {
        assert_eq!(lines(&output, "said "), ["before"]);
        assert!(output.contains("an event or a wait is missing"), "{output}");
    }
}
