//! How much memory this process has used and how much the machine has left.

/// The largest resident set of this process so far, in bytes; `None` where the kernel does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Memory that new allocations can get without swapping, in bytes: the machine's, or what a control group leaves.
pub fn available_bytes() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")?;
    Some(control_group_left().map_or(machine, |left| left.min(machine)))
}

/// Page faults of this process so far that needed no disk: each is a first touch of a page. `None` where the kernel
/// does not tell.
pub fn page_faults() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, in parentheses, may hold spaces; `minflt` is the eighth field after it.
    text.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(7)?
        .parse()
        .ok()
}

/// What cgroup v2 leaves of its limit; `None` without a limit.
fn control_group_left() -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

/// A `Name:   123 kB` line of a proc file, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
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
}
