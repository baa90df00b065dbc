//! CUDA devices: how many, their memory, their streams.
//!
//! **No device was there where this was written: these functions are compiled, and were never run.**

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

use libloading::os::unix::Library;

use crate::abi::Handle;
use crate::error::{TorchError, expect};
use crate::library::{self, Torch, torch};

/// CUDA devices that this process sees.
///
/// # Errors
/// This libtorch has no part for CUDA, or it does not load.
pub fn device_count(torch: &Torch) -> Result<usize, TorchError> {
    if crate::pretend::is_on() {
        return Ok(1);
    }
    let cuda = torch.cuda()?;
    let mut count = 0;
    // SAFETY: writes one number.
    let code = unsafe { (cuda.functions.cudaGetDeviceCount)(&mut count) };
    // Without a driver or a device it fails: there is none then.
    Ok(match code {
        0 => usize::try_from(count).unwrap_or(0),
        _ => 0,
    })
}

/// Free and total bytes of a device's memory, where it tells.
pub fn memory(device: usize) -> Option<(u64, u64)> {
    if crate::pretend::is_on() {
        return None;
    }
    let _guard = Guard::new(device);
    let functions = &expect(torch().cuda()).functions;
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two numbers.
    let code = unsafe { (functions.cudaMemGetInfo)(&mut free, &mut total) };
    (code == 0).then_some((free as u64, total as u64))
}

/// What the driver calls a device, such as `NVIDIA H100 80GB HBM3`, where it tells.
pub fn name(device: usize) -> Option<String> {
    /// Longer names are cut off.
    const LENGTH: usize = 256;
    let (driver, handle) = of_driver(device)?;
    // SAFETY: the driver's function, with the parameters that CUDA's documentation has.
    let get = unsafe {
        driver.get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0")
    };
    let (get, mut name) = (get.ok()?, [0u8; LENGTH]);
    // SAFETY: it writes at most as many bytes as it is told, the last of them zero.
    let code = unsafe { get(name.as_mut_ptr().cast(), LENGTH as c_int, handle) };
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    (code == 0).then(|| name.to_string_lossy().into_owned())
}

/// The first number of a device's compute capability, such as 9 of an H100's 9.0, where it tells.
pub(crate) fn major(device: usize) -> Option<i32> {
    /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`
    const MAJOR: c_int = 75;
    let (driver, handle) = of_driver(device)?;
    // SAFETY: the driver's function, with the parameters that CUDA's documentation has.
    let get = unsafe {
        driver.get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>(
            b"cuDeviceGetAttribute\0",
        )
    };
    let (get, mut major) = (get.ok()?, 0);
    // SAFETY: it writes one number.
    let code = unsafe { get(&mut major, MAJOR, handle) };
    (code == 0).then_some(major)
}

/// The driver's own library, and what it calls a device. (CUDA's runtime tells what is asked of it here only inside of a struct that
/// every release changes.)
fn of_driver(device: usize) -> Option<(Library, c_int)> {
    // SAFETY: the runtime has loaded it already, so nothing of it runs now for the first time.
    let driver = unsafe { Library::new("libcuda.so.1") }.ok()?;
    let mut handle = 0;
    // SAFETY: the driver's function, with the parameters that CUDA's documentation has; it writes one number.
    let code = unsafe {
        let get = driver.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet\0");
        get.ok()?(&mut handle, index(device))
    };
    (code == 0).then_some((driver, handle))
}

/// Waits until the device has done what its current stream was given.
pub fn synchronize(device: usize) {
    if crate::pretend::is_on() {
        return;
    }
    let functions = &expect(torch().cuda()).functions;
    let stream = current_stream(device);
    // SAFETY: the stream is the device's own.
    let code = unsafe { (functions.torch_cuda_stream_synchronize)(stream, index(device)) };
    expect(torch().check(code, "waiting for a CUDA device"));
}

/// The stream that libtorch computes on, as CUDA's own handle.
pub fn current_stream(device: usize) -> *mut c_void {
    let functions = &expect(torch().cuda()).functions;
    let mut stream = null_mut();
    // SAFETY: writes one pointer.
    let code =
        unsafe { (functions.aoti_torch_get_current_cuda_stream)(index(device), &mut stream) };
    expect(torch().check(code, "the current CUDA stream"));
    stream
}

/// Makes a device this thread's current one while it lives.
pub struct Guard(Handle);

impl Guard {
    /// Selects `device`.
    pub fn new(device: usize) -> Self {
        let functions = &expect(torch().cuda()).functions;
        let mut guard = null_mut();
        // SAFETY: writes one handle.
        let code = unsafe { (functions.aoti_torch_create_cuda_guard)(index(device), &mut guard) };
        expect(library::torch().check(code, "selecting a CUDA device"));
        Self(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(cuda) = torch().cuda() {
            // SAFETY: the guard is ours, and this is the last use of it.
            unsafe { (cuda.functions.aoti_torch_delete_cuda_guard)(self.0) };
        }
    }
}

fn index(device: usize) -> i32 {
    i32::try_from(device).unwrap_or(i32::MAX)
}
