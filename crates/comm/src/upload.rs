//! Numbers from the host to this rank's device, beside what it computes: by way of pinned memory, on a stream of their own.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, DriverError};
use tandem_tensor::{Device, HostElement, Tensor};

use crate::transport::device::{CudaDevice, PinnedMemory, upload, words};

/// Copies that are under way at most; the host waits for the oldest of them before it begins with another.
const MOST: usize = 64;

/// The way to a device. Pinned memory is used again when the copy out of it is over.
pub struct Uploads {
    ordinal: usize,
    cuda: Arc<CudaDevice>,
    /// In the order of their last use.
    stages: Vec<Stage>,
}

/// Pinned memory, and when the last copy out of it is over.
struct Stage {
    memory: PinnedMemory,
    done: Arc<CudaEvent>,
}

/// A copy under way. Whoever drops it lets the device wait: the memory goes back to libtorch, which hands it to the next user of the
/// default stream.
pub struct Upload {
    cuda: Arc<CudaDevice>,
    done: Arc<CudaEvent>,
    is_ordered: bool,
    /// Where it goes, so that nobody else is handed that memory before the device waits.
    target: Option<Tensor>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upload, waited for: {}", self.is_ordered)
    }
}

impl Uploads {
    /// The way to `Device::Cuda(ordinal)`.
    ///
    /// # Errors
    /// What the driver says, or that there is none.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        Ok(Self {
            ordinal,
            cuda: Arc::new(CudaDevice::open(ordinal)?),
            stages: Vec::new(),
        })
    }

    /// Starts to copy `values`. The tensor, of one dimension, has them for what the default stream is given after [`Upload::wait`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn start<T: HostElement>(&mut self, values: &[T]) -> Result<(Tensor, Upload), String> {
        let device = Device::Cuda(self.ordinal);
        let tensor = Tensor::empty([values.len() as i64], (T::KIND, device));
        let target = tensor.data_ptr().cast();
        // SAFETY: the tensor was made for as many bytes, and its memory is used by the default stream alone.
        let upload = unsafe { self.copy(values.as_ptr().cast(), target, size_of_val(values)) };
        let mut upload = upload.map_err(|error| words(&error))?;
        upload.target = Some(tensor.shallow_clone());
        Ok((tensor, upload))
    }

    /// Starts to copy to `target`, behind what the default stream was given so far, which may use that memory.
    ///
    /// # Safety
    /// `source` can be read for as many bytes now. `target` can be written on the device, and nobody but the default stream uses it,
    /// until the upload was waited for.
    unsafe fn copy(
        &mut self,
        source: *const u8,
        target: *mut u8,
        bytes: usize,
    ) -> Result<Upload, DriverError> {
        self.cuda.bind()?;
        let memory = self.pinned(bytes)?;
        if bytes > 0 {
            // SAFETY: the caller vouches for the source; the memory is as long, and nothing is copied out of it any more.
            unsafe { std::ptr::copy_nonoverlapping(source, memory.as_ptr(), bytes) };
        }
        let own = &self.cuda.own;
        own.wait(&*self.cuda.mark(&self.cuda.compute)?)?;
        // SAFETY: the caller vouches for the target; the stage keeps the memory until the copy is over.
        unsafe { upload(own, memory.as_ptr(), target, bytes) }?;
        let done = self.cuda.mark(own)?;
        self.stages.push(Stage {
            memory,
            done: done.clone(),
        });
        Ok(Upload {
            cuda: self.cuda.clone(),
            done,
            is_ordered: false,
            target: None,
        })
    }

    /// Memory for so many bytes out of which nothing is copied.
    fn pinned(&mut self, bytes: usize) -> Result<PinnedMemory, DriverError> {
        if self.stages.len() >= MOST {
            self.stages[0].done.synchronize()?;
        }
        let fits = |stage: &Stage| stage.memory.len() >= bytes && stage.done.is_complete();
        if let Some(place) = self.stages.iter().position(fits) {
            return Ok(self.stages.remove(place).memory);
        }
        if self.stages.len() >= MOST {
            // It is over, and too small.
            drop(self.stages.remove(0));
        }
        PinnedMemory::new(self.cuda.clone(), bytes)
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        // The memory must outlive the copies. If this fails, the device is of no more use.
        let _over = self.cuda.bind().and_then(|()| self.cuda.own.synchronize());
    }
}

impl Upload {
    /// What the default stream is given from now on comes after the copy. The host does not wait.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(mut self) -> Result<(), String> {
        self.order().map_err(|error| words(&error))
    }

    fn order(&mut self) -> Result<(), DriverError> {
        if !self.is_ordered {
            self.is_ordered = true;
            self.cuda.bind()?;
            self.cuda.compute.wait(&self.done)?;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Before the target goes. If this fails, the device is of no more use.
        let _ordered = self.order();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Over, Setup, lines};
    use crate::transport::device::{DeviceMemory, download};

    const LEN: usize = 4096;

    /// A device, and memory on it that one upload after the other goes to.
    struct Rank {
        uploads: Uploads,
        memory: DeviceMemory,
    }

    impl Rank {
        fn new() -> Self {
            let uploads = Uploads::open(0).unwrap();
            let memory = DeviceMemory::new(uploads.cuda.clone(), LEN).unwrap();
            Self { uploads, memory }
        }

        fn upload(&mut self, value: u8) -> Upload {
            let values = vec![value; LEN];
            // SAFETY: both are as long, and what uses the memory is given to the default stream.
            unsafe {
                self.uploads
                    .copy(values.as_ptr(), self.memory.as_ptr(), LEN)
            }
            .unwrap()
        }

        /// What a computation on the default stream sees.
        fn values(&self) -> Vec<u8> {
            let mut values = vec![0; LEN];
            let compute = &self.uploads.cuda.compute;
            // SAFETY: both are as long, and the copy into pageable memory is done when this returns.
            unsafe { download(compute, self.memory.as_ptr(), values.as_mut_ptr(), LEN) }.unwrap();
            values
        }
    }

    fn run(test: &'static str, victims: &[usize], body: fn(Rank)) -> Vec<String> {
        let setup = Setup::new(test, 1, Over::Nccl).victims(victims);
        setup.run_configured(|_| body(Rank::new()))
    }

    #[test]
    fn each_upload_is_there_for_what_comes_after_it_is_waited_for() {
        const TEST: &str =
            "upload::tests::each_upload_is_there_for_what_comes_after_it_is_waited_for";
        let outputs = run(TEST, &[], |mut rank| {
            for value in 0..50 {
                rank.upload(value).wait().unwrap();
                assert_eq!(rank.values(), [value; LEN]);
            }
            println!("said {} stages", rank.uploads.stages.len());
            // Whoever is not interested lets the device wait all the same: the memory is used again.
            for value in 0..50 {
                drop(rank.upload(value));
            }
            assert_eq!(rank.values(), [49; LEN]);
        });
        for output in outputs {
            // The host sees that a copy is over a little late, if at all.
            let said = lines(&output, "said ").join("");
            let stages: usize = said.split(' ').next().unwrap().parse().unwrap();
            assert!((1..=50).contains(&stages), "{said}");
        }
    }

    /// What the device was given before may still read the memory that the next upload goes to: nobody waits for it on the host.
    #[test]
    fn an_upload_waits_for_what_uses_its_memory() {
        const TEST: &str = "upload::tests::an_upload_waits_for_what_uses_its_memory";
        run(TEST, &[], |mut rank| {
            let cuda = rank.uploads.cuda.clone();
            let seen = PinnedMemory::new(cuda.clone(), LEN).unwrap();
            for value in 0..50 {
                rank.upload(value).wait().unwrap();
                let (from, to) = (rank.memory.as_ptr(), seen.as_ptr());
                // SAFETY: both are as long, and the host reads it when it has waited for the stream.
                unsafe { download(&cuda.compute, from, to, LEN) }.unwrap();
            }
            cuda.compute.synchronize().unwrap();
            // SAFETY: nothing is copied to it any more.
            let seen = unsafe { std::slice::from_raw_parts(seen.as_ptr(), LEN) };
            assert_eq!(seen, [49; LEN]);
        });
    }

    /// More than can be under way at a time: each is copied out of memory that nobody writes to meanwhile.
    #[test]
    fn pinned_memory_is_not_written_before_its_copy_is_over() {
        const TEST: &str = "upload::tests::pinned_memory_is_not_written_before_its_copy_is_over";
        run(TEST, &[], |mut rank| {
            let own = rank.uploads.cuda.clone();
            let memories: Vec<DeviceMemory> = (0..3 * MOST)
                .map(|_| DeviceMemory::new(own.clone(), LEN).unwrap())
                .collect();
            let mut under_way = Vec::new();
            for (index, memory) in memories.iter().enumerate() {
                let values = vec![index as u8; LEN];
                // SAFETY: as in `Rank::upload`.
                let upload = unsafe { rank.uploads.copy(values.as_ptr(), memory.as_ptr(), LEN) };
                under_way.push(upload.unwrap());
            }
            assert!(rank.uploads.stages.len() <= MOST);
            for upload in under_way {
                upload.wait().unwrap();
            }
            for (index, memory) in memories.into_iter().enumerate() {
                rank.memory = memory;
                assert_eq!(rank.values(), [index as u8; LEN]);
            }
        });
    }

    /// The negative of the first: what does not wait is noticed, every time.
    #[test]
    fn a_missing_wait_ends_the_process() {
        const TEST: &str = "upload::tests::a_missing_wait_ends_the_process";
        let outputs = run(TEST, &[0], |mut rank| {
            let upload = rank.upload(1);
            println!("said before");
            println!("said {:?}", rank.values().first());
            upload.wait().unwrap();
        });
        for output in outputs {
            assert_eq!(lines(&output, "said "), ["before"]);
            assert!(output.contains("an event or a wait is missing"), "{output}");
        }
    }
}
