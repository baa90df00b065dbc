//! The functions of the driver that Tandem calls, as `cuda.h` declares them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::Duration;

use parking_lot::MutexGuard;

use super::machine::{
    INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, Machine, NO_DEVICE, NOT_READY, NOT_SUPPORTED,
    OUT_OF_MEMORY, Touch, current, devices, machine, set_current, wait_for_device, wait_for_event,
    wait_for_stream,
};
use super::memory::Place;
use crate::fault::{self, Fault};
use crate::forbidden;

/// Streams that do not wait for the default stream; others would hide a missing wait.
const NON_BLOCKING: c_uint = 1;

/// What every call begins with: a failure that is due, a device that is broken.
fn call(
    function: &str,
    body: impl FnOnce(&mut MutexGuard<'static, Machine>) -> Result<(), c_int>,
) -> c_int {
    match fault::due(function) {
        None => {}
        Some(Fault::Error(status)) => return status,
        Some(Fault::Broken(status)) => {
            machine().broken = Some(status);
            return status;
        }
        Some(Fault::Blocked) => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Some(Fault::Stuck | Fault::Late | Fault::Async(_)) => {
            forbidden("only collectives can be stuck or late")
        }
    }
    let mut machine = machine();
    if let Some(status) = machine.broken {
        return status;
    }
    match body(&mut machine) {
        Ok(()) => 0,
        Err(status) => status,
    }
}

/// Writes a result.
///
/// # Safety
/// `place` is null or can be written to.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), c_int> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for it.
    unsafe { place.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    call("cuInit", |_| match devices() {
        0 => Err(NO_DEVICE),
        _ => Ok(()),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller passes a place for the result, as `cuda.h` asks; so do those of all functions below.
    call("cuDeviceGetCount", |_| unsafe {
        put(count, devices() as c_int)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    call("cuDeviceGet", |_| match usize::try_from(ordinal) {
        // SAFETY: see above.
        Ok(number) if number < devices() => unsafe { put(device, ordinal) },
        _ => Err(INVALID_DEVICE),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> c_int {
    let text = c"Simulated GPU".to_bytes_with_nul();
    call("cuDeviceGetName", |_| {
        if name.is_null() || (length as usize) < text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller has room for `length` bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), text.len()) };
        Ok(())
    })
}

/// The same in every process, as for one machine's devices.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> c_int {
    let mut bytes = *b"simulated GPU  0";
    bytes[12..].copy_from_slice(&device.to_be_bytes());
    // SAFETY: see above.
    call("cuDeviceGetUuid_v2", |_| unsafe { put(uuid, bytes) })
}

/// Everything is 0, so there are no pools of memory either.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    _attribute: c_int,
    _device: c_int,
) -> c_int {
    // SAFETY: see above.
    call("cuDeviceGetAttribute", |_| unsafe { put(value, 0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int {
    let handle = (device as usize + 1) as *mut c_void;
    // SAFETY: see above.
    call("cuDevicePrimaryCtxRetain", |_| unsafe {
        put(context, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    call("cuDevicePrimaryCtxRelease_v2", |_| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    let handle = current().map_or(0, |device| device + 1) as *mut c_void;
    // SAFETY: see above.
    call("cuCtxGetCurrent", |_| unsafe { put(context, handle) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    call("cuCtxSetCurrent", |_| {
        set_current((context as usize).checked_sub(1));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    call("cuCtxSynchronize", wait_for_device)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> c_int {
    call("cuStreamCreate", |machine| {
        if flags != NON_BLOCKING {
            return Err(NOT_SUPPORTED);
        }
        let handle = machine.new_stream()?;
        // SAFETY: see above.
        unsafe { put(stream, handle as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    call("cuStreamDestroy_v2", |machine| {
        machine.destroy_stream(stream as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> c_int {
    call("cuStreamSynchronize", |machine| {
        wait_for_stream(machine, stream as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: c_uint) -> c_int {
    call("cuStreamWaitEvent", |machine| {
        machine.wait_for(stream as usize, event as usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    call("cuEventCreate", |machine| {
        let handle = machine.new_event()?;
        // SAFETY: see above.
        unsafe { put(event, handle as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    call("cuEventRecord", |machine| {
        machine.record(event as usize, stream as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: *mut c_void) -> c_int {
    call("cuEventQuery", |machine| {
        match machine.has_happened(event as usize)? {
            true => Ok(()),
            false => Err(NOT_READY),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: *mut c_void) -> c_int {
    call("cuEventSynchronize", |machine| {
        wait_for_event(machine, event as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    call("cuEventDestroy_v2", |machine| {
        machine.destroy_event(event as usize)
    })
}

fn take(machine: &mut Machine, place: Place, bytes: usize) -> Result<usize, c_int> {
    current().ok_or(INVALID_CONTEXT)?;
    machine.memory.take(place, bytes).ok_or(OUT_OF_MEMORY)
}

fn give_back(machine: &mut Machine, place: Place, address: usize) -> Result<(), c_int> {
    let known = machine.known();
    match machine.memory.give_back(place, address, &known) {
        true => Ok(()),
        false => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    call("cuMemAlloc_v2", |machine| {
        let taken = take(machine, Place::Device, bytes)?;
        // SAFETY: see above.
        unsafe { put(address, taken as u64) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    call("cuMemFree_v2", |machine| {
        // As the driver does.
        wait_for_device(machine)?;
        give_back(machine, Place::Device, address as usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(
    address: *mut *mut c_void,
    bytes: usize,
    _flags: c_uint,
) -> c_int {
    call("cuMemHostAlloc", |machine| {
        let taken = take(machine, Place::Pinned, bytes)?;
        // SAFETY: see above.
        unsafe { put(address, taken as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> c_int {
    call("cuMemFreeHost", |machine| {
        give_back(machine, Place::Pinned, address as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: *mut c_void) -> c_int {
    call("cuMemsetD8Async", |machine| {
        let range = address as usize..address as usize + bytes;
        let place = machine.memory.backing(&range).ok_or(INVALID_VALUE)?;
        let touch = Touch {
            range,
            writes: true,
        };
        // SAFETY: within the memory that `backing` names, which is not given back while this is not done.
        let fill = move || unsafe { std::ptr::write_bytes(place as *mut u8, value, bytes) };
        machine.enqueue(stream as usize, "cuMemsetD8Async", &[touch], Box::new(fill))
    })
}

/// # Safety
/// `source` can be read for as many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    target: u64,
    source: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    const NAME: &str = "cuMemcpyHtoDAsync_v2";
    call(NAME, |machine| {
        let target = target as usize..target as usize + bytes;
        let source = source as usize..source as usize + bytes;
        let to = machine.memory.backing(&target).ok_or(INVALID_VALUE)?;
        let mut touches = vec![Touch {
            range: target,
            writes: true,
        }];
        if machine.memory.is_pinned(&source) {
            let from = machine.memory.backing(&source).ok_or(INVALID_VALUE)?;
            touches.push(Touch {
                range: source,
                writes: false,
            });
            let copy = move || copy(from, to, bytes);
            return machine.enqueue(stream as usize, NAME, &touches, Box::new(copy));
        }
        // The driver, too, has copied pageable memory when this returns.
        // SAFETY: the caller vouches for the source.
        let own = unsafe { std::slice::from_raw_parts(source.start as *const u8, bytes) }.to_vec();
        let copy = move || copy(own.as_ptr() as usize, to, bytes);
        machine.enqueue(stream as usize, NAME, &touches, Box::new(copy))
    })
}

/// # Safety
/// `target` can be written for as many bytes, until the host has waited for the copy.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    target: *mut c_void,
    source: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    const NAME: &str = "cuMemcpyDtoHAsync_v2";
    call(NAME, |machine| {
        let target = target as usize..target as usize + bytes;
        let source = source as usize..source as usize + bytes;
        let from = machine.memory.backing(&source).ok_or(INVALID_VALUE)?;
        let mut touches = vec![Touch {
            range: source,
            writes: false,
        }];
        let is_pinned = machine.memory.is_pinned(&target);
        let to = match is_pinned {
            true => machine.memory.backing(&target).ok_or(INVALID_VALUE)?,
            false => target.start,
        };
        if is_pinned {
            touches.push(Touch {
                range: target,
                writes: true,
            });
        }
        let copy = move || copy(from, to, bytes);
        machine.enqueue(stream as usize, NAME, &touches, Box::new(copy))?;
        match is_pinned {
            true => Ok(()),
            // The driver, too, returns only when pageable memory is filled.
            false => wait_for_stream(machine, stream as usize),
        }
    })
}

fn copy(from: usize, to: usize, bytes: usize) {
    // SAFETY: both ends were checked when the copy was enqueued, and the order of accesses keeps others away from them.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
}

fn error_text(status: c_int) -> Option<(&'static CStr, &'static CStr)> {
    Some(match status {
        0 => (c"CUDA_SUCCESS", c"no error"),
        1 => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        2 => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        100 => (
            c"CUDA_ERROR_NO_DEVICE",
            c"no CUDA-capable device is detected",
        ),
        101 => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        201 => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        400 => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        600 => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        700 => (
            c"CUDA_ERROR_ILLEGAL_ADDRESS",
            c"an illegal memory access was encountered",
        ),
        801 => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        _ => return None,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(status: c_int, text: *mut *const c_char) -> c_int {
    let found = error_text(status).ok_or(INVALID_VALUE);
    // SAFETY: see above.
    let written = found.and_then(|(name, _)| unsafe { put(text, name.as_ptr()) });
    written.err().unwrap_or(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(status: c_int, text: *mut *const c_char) -> c_int {
    let found = error_text(status).ok_or(INVALID_VALUE);
    // SAFETY: see above.
    let written = found.and_then(|(_, sentence)| unsafe { put(text, sentence.as_ptr()) });
    written.err().unwrap_or(0)
}
