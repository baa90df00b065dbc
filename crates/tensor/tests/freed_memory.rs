//! What a step frees serves the next one, whatever its size. There is no harness: page faults are counted for a whole process, and a
//! rank allocates in the first thread of its process, as `main` does here. In another one, glibc has 64 MiB at most.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn main() {
    use tandem_tensor::memory;

    let page_faults = || memory::page_faults().expect("Linux counts them");
    memory::keep_freed();
    // The larger one is beyond what glibc accepts as the threshold from which a block is a mapping of its own.
    for bytes in [24usize << 20, 200 << 20] {
        let touch = || std::hint::black_box(vec![1u8; bytes]);
        drop(touch());
        let before = page_faults();
        drop(touch());
        let faults = page_faults() - before;
        assert!(
            faults < (bytes / 4096 / 10) as u64,
            "{bytes} bytes: {faults} page faults"
        );
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn main() {}
