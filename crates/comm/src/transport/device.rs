//! A CUDA device as groups see it: the stream that libtorch computes on, a stream of the group's own, and memory.

use std::ffi::CStr;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};

/// What the driver says, for people.
pub(crate) fn words(error: &DriverError) -> String {
    let text = |text: Result<&CStr, DriverError>| {
        text.map_or_else(
            |_| "unknown".to_owned(),
            |text| text.to_string_lossy().into_owned(),
        )
    };
    format!(
        "{} ({})",
        text(error.error_string()),
        text(error.error_name())
    )
}

/// One group's view of a device.
pub(crate) struct CudaDevice {
    context: Arc<CudaContext>,
    /// What libtorch computes on: the default stream, because nothing here selects another.
    pub(crate) compute: Arc<CudaStream>,
    /// What the group works on, beside the computation.
    pub(crate) own: Arc<CudaStream>,
}

impl CudaDevice {
    /// # Errors
    /// What the driver says, or that there is none.
    pub(crate) fn open(ordinal: usize) -> Result<Self, String> {
        // SAFETY: looking runs the driver library's initialisers, as using it does.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err("the driver library libcuda.so.1 is not there".to_owned());
        }
        let failed = |error: DriverError| words(&error);
        let context = CudaContext::new(ordinal).map_err(failed)?;
        Ok(Self {
            compute: context.default_stream(),
            own: context.new_stream().map_err(failed)?,
            context,
        })
    }

    /// The same number for the same device, in every process of a host, whatever it is called there.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn identity(&self) -> Result<String, DriverError> {
        let uuid = self.context.uuid()?;
        let byte = |byte: &std::ffi::c_char| format!("{:02x}", byte.cast_unsigned());
        Ok(uuid.bytes.iter().map(byte).collect())
    }

    /// Makes the device this thread's current one, which every call of the driver and of NCCL wants.
    pub(crate) fn bind(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread()
    }

    /// An event behind what a stream was given so far.
    pub(crate) fn mark(&self, stream: &CudaStream) -> Result<Arc<CudaEvent>, DriverError> {
        stream.record_event(None).map(Arc::new)
    }
}

/// A few bytes on the device, for a group's own use.
pub(crate) struct DeviceMemory {
    device: Arc<CudaDevice>,
    address: CUdeviceptr,
}

impl DeviceMemory {
    /// # Errors
    /// When there is not enough.
    pub(crate) fn new(device: Arc<CudaDevice>, bytes: usize) -> Result<Self, DriverError> {
        device.bind()?;
        // SAFETY: nobody reads it before somebody has written it.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }?;
        Ok(Self { device, address })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address as usize)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and freeing it waits for the device. If that fails, the device is of no more use.
        let _freed = self
            .device
            .bind()
            .and_then(|()| unsafe { result::free_sync(self.address) });
    }
}

/// Host memory that the device can copy from and to by itself.
pub(crate) struct PinnedMemory {
    device: Arc<CudaDevice>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// # Errors
    /// When there is not enough.
    pub(crate) fn new(device: Arc<CudaDevice>, bytes: usize) -> Result<Self, DriverError> {
        device.bind()?;
        // SAFETY: it is read only where it was written. No flags: the host reads it, too.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }?.cast();
        Ok(Self {
            device,
            start,
            bytes,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // Its copies were waited for when they were made.
        // SAFETY: the memory is ours, and this is the last use of it.
        let _freed = self
            .device
            .bind()
            .and_then(|()| unsafe { result::free_host(self.start.cast()) });
    }
}

/// Copies between host memory and the device, in the order of `stream`.
///
/// # Safety
/// Both ends are valid for as many bytes, `device` on the device, until the stream has passed the copy.
pub(crate) unsafe fn upload(
    stream: &CudaStream,
    host: *const u8,
    device: *mut u8,
    bytes: usize,
) -> Result<(), DriverError> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller vouches for both ends.
    unsafe {
        let host = std::slice::from_raw_parts(host, bytes);
        result::memcpy_htod_async(device.addr() as CUdeviceptr, host, stream.cu_stream())
    }
}

/// The other direction of [`upload`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn download(
    stream: &CudaStream,
    device: *const u8,
    host: *mut u8,
    bytes: usize,
) -> Result<(), DriverError> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller vouches for both ends.
    unsafe {
        let host = std::slice::from_raw_parts_mut(host, bytes);
        result::memcpy_dtoh_async(host, device.addr() as CUdeviceptr, stream.cu_stream())
    }
}
