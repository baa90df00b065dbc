//! Groups for tensors in host memory that work in a device's memory: what is written for one kind of group can be tried with
//! groups of devices, where no library computes on the device.
//!
//! Each operation copies its tensors to the device, on the default stream, as a computation would write them there, and its
//! result back. Device memory is handed out as libtorch does it: what is given back is the next one's at once, because all users
//! of the default stream come one after another.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Weak};

use cudarc::driver::DriverError;
use parking_lot::Mutex;
use tandem_tensor::Device;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::member::Member;
use crate::group::operation::Operation;
use crate::group::process_group::ProcessGroup;
use crate::group::work::{Pending, Work};
use crate::meet::board::Board;
use crate::meet::config::Transport;
use crate::meet::membership::Membership;
use crate::meet::point::MeetingPoint;
use crate::testing::over::Over;
use crate::transport::cuda;
use crate::transport::device::{CudaDevice, DeviceMemory, download, upload, words};
use crate::transport::nccl::{self, library::Library};
use crate::world::GroupMaker;

/// Which device, and how its groups move data.
pub(crate) struct Detour {
    ordinal: usize,
    /// From host memory on; `None` for NCCL.
    staged: Option<Transport>,
}

impl Detour {
    pub(crate) fn new(over: Over, rank: usize) -> Option<Self> {
        match over {
            Over::Host(_) => None,
            Over::Nccl => Some(Self {
                ordinal: rank,
                staged: None,
            }),
            Over::Staged(transport) => Some(Self {
                ordinal: 0,
                staged: Some(transport),
            }),
        }
    }

    /// Makes the groups of a world.
    pub(crate) fn into_maker(self) -> Box<GroupMaker> {
        Box::new(move |context, point, membership| self.create(context, point, membership))
    }

    fn create(
        &self,
        context: Arc<GroupContext>,
        point: &Arc<MeetingPoint>,
        membership: &Membership<'_>,
    ) -> Result<Arc<dyn ProcessGroup>> {
        let computing = cuda::open(&context, self.ordinal)?;
        let device = (cuda::open(&context, self.ordinal)?, self.ordinal);
        if let Some(transport) = self.staged {
            let group = cuda::staged(context, membership, transport, device)?;
            return Ok(Arc::new(OnDevice::new(computing, group)));
        }
        let board = Board::new(
            point.clone(),
            membership.key(),
            context.rank,
            context.creation(),
        );
        let library = Library::open().expect("the simulated NCCL");
        let group = nccl::create(context, membership, board, device, library)?;
        Ok(Arc::new(OnDevice::new(computing, group)))
    }
}

/// Reads device memory as if it were the host's, which ends the process.
pub fn touch_device_memory() {
    let device = Arc::new(CudaDevice::open(0).expect("a device"));
    let memory = DeviceMemory::new(device, 1).expect("memory");
    // SAFETY: there is none: the system ends the process here, which is what the caller wants to see.
    std::hint::black_box(unsafe { memory.as_ptr().read_volatile() });
}

/// A group for tensors in host memory around one of a device.
struct OnDevice<M> {
    cuda: Arc<CudaDevice>,
    inner: Arc<M>,
    pool: Arc<Pool>,
    /// Host memory that is on the device, until the operations with it are over.
    mirrors: Mutex<Vec<Weak<Mirror>>>,
}

/// Device memory that nobody uses.
type Pool = Mutex<Vec<(usize, DeviceMemory)>>;

/// A range of host memory and its counterpart on the device.
struct Mirror {
    host: Range<usize>,
    pool: Arc<Pool>,
    /// `None` once it went back to the pool.
    memory: Option<(usize, DeviceMemory)>,
}

impl Mirror {
    /// Where an address of the range is on the device.
    fn at(&self, address: usize) -> *mut u8 {
        let start = self.memory.as_ref().map(|(_, memory)| memory.as_ptr());
        // SAFETY: the memory is as long as the range.
        unsafe { start.expect("alive").add(address - self.host.start) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.pool.lock().extend(self.memory.take());
    }
}

impl<M: Member + 'static> OnDevice<M> {
    fn new(cuda: CudaDevice, inner: M) -> Self {
        Self {
            cuda: Arc::new(cuda),
            inner: Arc::new(inner),
            pool: Arc::default(),
            mirrors: Mutex::default(),
        }
    }

    /// The counterpart of a range: what an earlier operation has there, whose result it may be, or a new one, with the range's
    /// bytes where they are wanted.
    fn mirror(
        &self,
        range: &Range<usize>,
        with_bytes: bool,
    ) -> std::result::Result<Arc<Mirror>, DriverError> {
        let mut mirrors = self.mirrors.lock();
        mirrors.retain(|mirror| mirror.strong_count() > 0);
        let contains =
            |mirror: &Mirror| mirror.host.start <= range.start && range.end <= mirror.host.end;
        let mut alive = mirrors.iter().filter_map(Weak::upgrade);
        if let Some(mirror) = alive.find(|mirror| contains(mirror)) {
            return Ok(mirror);
        }
        let pooled = {
            let mut pool = self.pool.lock();
            let fits = pool.iter().rposition(|(bytes, _)| *bytes >= range.len());
            fits.map(|index| pool.remove(index))
        };
        let memory = match pooled {
            Some(memory) => memory,
            None => (
                range.len(),
                DeviceMemory::new(self.cuda.clone(), range.len())?,
            ),
        };
        let mirror = Arc::new(Mirror {
            host: range.clone(),
            pool: self.pool.clone(),
            memory: Some(memory),
        });
        if with_bytes {
            let host = std::ptr::with_exposed_provenance(range.start);
            // SAFETY: the range is within an operation's tensors, and the counterpart is as long.
            unsafe {
                upload(
                    &self.cuda.compute,
                    host,
                    mirror.at(range.start),
                    range.len(),
                )
            }?;
        }
        mirrors.push(Arc::downgrade(&mirror));
        Ok(mirror)
    }

    /// The counterparts of an operation's input and output, which may be one.
    fn mirrors(
        &self,
        operation: &Operation,
    ) -> std::result::Result<[Option<Arc<Mirror>>; 2], DriverError> {
        self.cuda.bind()?;
        let spans = operation.spans(self.context().rank);
        if let Some(both) = spans.joined() {
            let mirror = self.mirror(&both, true)?;
            return Ok([Some(mirror.clone()), Some(mirror)]);
        }
        let of = |range: &Range<usize>, with_bytes| match range.is_empty() {
            true => Ok(None),
            false => self.mirror(range, with_bytes).map(Some),
        };
        Ok([of(&spans.input, true)?, of(&spans.output, false)?])
    }
}

impl<M: Member + 'static> Member for OnDevice<M> {
    fn context(&self) -> &GroupContext {
        self.inner.context()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn submit(&self, operation: Operation) -> Result<Work> {
        let failed = |error: DriverError| CommError::Device {
            library: "CUDA",
            reason: words(&error),
            site: self.context().site(&operation.signature),
        };
        let mirrors = self.mirrors(&operation).map_err(failed)?;
        let place = |mirror: &Option<Arc<Mirror>>, address: *const u8| match mirror {
            Some(mirror) => mirror.at(address.expose_provenance()),
            None => std::ptr::null_mut(),
        };
        let input = place(&mirrors[0], operation.input);
        let output = place(&mirrors[1], operation.output);
        let kept: Arc<dyn Any + Send + Sync> = Arc::new(mirrors.clone());
        let work = self
            .inner
            .submit(operation.moved(input, output, Some(kept)))?;
        Ok(Work::new(Shown {
            work: Some(work),
            cuda: self.cuda.clone(),
            group: Arc::downgrade(&self.inner),
            operation,
            result: mirrors[1].clone(),
        }))
    }

    fn submit_barrier(&self) -> Result<Work> {
        self.inner.submit_barrier()
    }

    fn check_done(&self) -> Result<()> {
        self.inner.check_done()
    }
}

/// An operation whose result is copied back once somebody waits for it.
struct Shown<M> {
    /// `None` once waited for.
    work: Option<Work>,
    cuda: Arc<CudaDevice>,
    group: Weak<M>,
    /// Keeps the tensors.
    operation: Operation,
    result: Option<Arc<Mirror>>,
}

impl<M: Member> Shown<M> {
    fn copy_back(&self, result: &Mirror, group: &M) -> std::result::Result<(), DriverError> {
        let output = self.operation.spans(group.context().rank).output;
        let host = self.operation.output;
        self.cuda.bind()?;
        // SAFETY: the output is the operation's, and the result as long.
        unsafe {
            download(
                &self.cuda.compute,
                result.at(output.start),
                host,
                output.len(),
            )
        }?;
        self.cuda.compute.synchronize()
    }
}

impl<M: Member> Pending for Shown<M> {
    fn start(&mut self) {
        if let Some(work) = &mut self.work {
            work.start();
        }
    }

    fn wait(&mut self) -> Result<()> {
        self.work.take().map_or(Ok(()), Work::wait)?;
        let Some(group) = self.group.upgrade() else {
            return Ok(());
        };
        if let Some(result) = self.result.take() {
            let copied = self.copy_back(&result, &group);
            // Who has read a result asks whether it is one.
            group.check_done()?;
            copied.map_err(|error| CommError::Device {
                library: "CUDA",
                reason: words(&error),
                site: group.context().site(&self.operation.signature),
            })?;
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.work.as_ref().is_none_or(Work::is_finished)
    }
}

/// Groups with nothing but memory on a device, as libtorch's tensors are: no host in between.
#[cfg(test)]
mod tests {
    use super::*;

    use tandem_tensor::Tensor;

    use crate::collective::{Collective, ReduceOp};
    use crate::group::operation::Arguments;
    use crate::testing::{Setup, lines};
    use crate::transport::cuda::open;
    use crate::transport::nccl::NcclGroup;
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
            "testing::detour::tests::what_was_waited_for_is_done_even_if_the_group_is_dropped";
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
        const TEST: &str = "testing::detour::tests::the_default_stream_waits_and_the_host_does_not";
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
        const TEST: &str = "testing::detour::tests::a_missing_wait_ends_the_process";
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
}
