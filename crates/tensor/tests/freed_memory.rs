//! What a step frees serves the next one. The test is alone in its process: page faults are counted for a whole process, and
//! glibc gives a block back after all where the tests before it left no room in their thread's first 64 MiB.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use tandem_tensor::memory;

/// A block that is too small for the exception, freed and allocated again, is there without page faults.
#[test]
fn freed_memory_stays() {
    const BYTES: usize = 24 << 20;
    memory::keep_freed();
    let touch = || std::hint::black_box(vec![1u8; BYTES]);
    drop(touch());
    let before = memory::page_faults().unwrap();
    drop(touch());
    let faults = memory::page_faults().unwrap() - before;
    assert!(faults < (BYTES / 4096 / 10) as u64, "{faults} page faults");
}
