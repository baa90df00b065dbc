//! How much memory this process has used and how much the machine has left; and what it does with what it frees.

mod limits;

/// Keeps freed memory for the next allocation instead of giving it back to the system: a step frees what the next step
/// allocates, and memory that comes fresh from the system costs a page fault for every 4 KiB. That is so for blocks of any
/// size: glibc's threshold ends at 32 MiB, which the activations of a wide layer exceed, so none is a mapping of its own. Does
/// nothing where the C library is not glibc.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;

        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_MAX: c_int = -4;
        // SAFETY: glibc's function with glibc's parameters; it takes the allocator's own lock.
        let accepted =
            unsafe { mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, c_int::MAX) == 1 };
        debug_assert!(accepted, "glibc refuses its own limits");
    }
}

/// The largest resident set of this process so far, in bytes; `None` where the kernel does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Memory that new allocations can get without swapping, in bytes: the machine's, or what the control groups of this
/// process leave, of either version and nested or not.
pub fn available_bytes() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")?;
    let groups = limits::control_groups_left();
    Some(groups.map_or(machine, |left| left.min(machine)))
}

/// Memory of the machine, or what the control groups of this process allow it, in bytes, whatever of it is in use.
pub fn total_bytes() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemTotal:")?;
    let groups = limits::control_groups_allow();
    Some(groups.map_or(machine, |limit| limit.min(machine)))
}

/// What the limit of address space (`ulimit -v`) leaves this process, in bytes, and each that it starts; `None` without one.
pub fn address_space_left() -> Option<u64> {
    let limit = limits::address_space()?;
    let used = field("/proc/self/status", "VmSize:")?;
    Some(limit.saturating_sub(used))
}

/// Page faults of this process so far that needed no disk: each is a first touch of a page. `None` where the kernel
/// does not tell.
pub fn page_faults() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat_field(&text, 7)
}

/// Processor time of this process so far, all threads, in seconds.
pub fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// A number of `/proc/self/stat`, counted from the first field after the command's name; the name is in parentheses and may
/// hold spaces.
fn stat_field(text: &str, index: usize) -> Option<u64> {
    let after_name = text.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(index)?.parse().ok()
}

/// A `Name:   123 kB` line of a proc file, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_resident_and_memory_is_available() {
        assert!(peak_resident_bytes().unwrap() > 1 << 20);
        assert!(available_bytes().unwrap() > 1 << 20);
        assert!(page_faults().unwrap() > 0);
    }

    #[test]
    fn processor_time_passes_while_computing() {
        let before = processor_seconds();
        let begin = std::time::Instant::now();
        while processor_seconds() < before + 0.02 {
            assert!(begin.elapsed().as_secs() < 60, "it stands still");
        }
    }
}
