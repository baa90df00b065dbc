//! The instructions that multiply pairs of bf16 and add up in fp32.

/// The proof that this processor has AVX512-BF16 and what the kernels use beside it: they can be called with one only.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Bf16(());

impl Avx512Bf16 {
    /// `None` on a processor without them.
    pub fn detect() -> Option<Self> {
        // The answers are cached by the standard library.
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        has_all.then_some(Self(()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The tests of the kernels ask `detect` whether they can run: here it is held against the operating system.
    #[test]
    fn linux_says_the_same() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
        let expected = ["avx512_bf16", "avx512bw", "avx512vl", "avx512dq"]
            .iter()
            .all(|flag| flags.contains(flag));
        assert_eq!(Avx512Bf16::detect().is_some(), expected);
    }
}
