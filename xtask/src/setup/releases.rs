//! The releases of torch that set-up fetches and that Tandem is tested with.

use std::fmt;

use super::version;

/// A release of torch, with what its CPU part needs besides its own wheel.
///
/// The wheels for Linux on PyPI are CUDA builds, whose `libtorch_cpu.so` links CUPTI and the CUDA runtime (for the
/// profiler). Which versions of these: what the torch wheel's `Requires-Dist` pins, directly or through the extras
/// `cupti` and `cudart` of `cuda-toolkit`. The linked names (`libcupti.so.12` or `.13`) were read from the ELF header of
/// every wheel of the table, for both processors.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    pub version: &'static str,
    cuda_on_x86_64: &'static [&'static str],
    cuda_on_aarch64: &'static [&'static str],
}

const CUDA_12_8: [&str; 2] = [
    "nvidia-cuda-cupti-cu12==12.8.90",
    "nvidia-cuda-runtime-cu12==12.8.90",
];
/// From here on the packages have no `-cu13` in their names.
const CUDA_13_0: [&str; 2] = ["nvidia-cuda-cupti==13.0.85", "nvidia-cuda-runtime==13.0.96"];
const CUDA_13_2: [&str; 2] = ["nvidia-cuda-cupti==13.2.86", "nvidia-cuda-runtime==13.2.86"];

/// The newest patch of each minor version, oldest first.
pub const RELEASES: [Release; 6] = [
    Release {
        version: "2.10.0",
        cuda_on_x86_64: &CUDA_12_8,
        // The last one that PyPI has as a CPU build for this processor.
        cuda_on_aarch64: &[],
    },
    Release::new("2.11.0", &CUDA_13_0),
    Release::new("2.12.1", &CUDA_13_0),
    Release::new("2.13.0", &CUDA_13_0),
    Release::new("2.14.1", &CUDA_13_0),
    Release::new("2.15.0", &CUDA_13_2),
];

/// The oldest of them.
pub const OLDEST: &Release = &RELEASES[0];
/// The one that set-up fetches unless told otherwise.
pub const NEWEST: &Release = &RELEASES[RELEASES.len() - 1];

/// Why a name stands for no release of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownRelease(String);

impl fmt::Display for UnknownRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnknownRelease {}

impl Release {
    const fn new(version: &'static str, cuda: &'static [&'static str]) -> Self {
        Self {
            version,
            cuda_on_x86_64: cuda,
            cuda_on_aarch64: cuda,
        }
    }

    /// The release of a name: `2.11.0`, or `2.11` for the newest patch of it.
    ///
    /// # Errors
    /// If the table has no such release; the error lists those it has.
    pub fn named(name: &str) -> Result<&'static Self, UnknownRelease> {
        let is_named = |release: &&Self| {
            let minor = release.version.rsplit_once('.').map(|(minor, _)| minor);
            release.version == name || minor == Some(name)
        };
        if let Some(release) = RELEASES.iter().find(is_named) {
            return Ok(release);
        }
        let known = RELEASES.each_ref().map(|release| release.version);
        let known = known.join(", ");
        Err(UnknownRelease(match version::minor(name) {
            Some(minor) if minor < version::OLDEST => format!(
                "torch {name} is too old: Tandem needs {} or newer. Set-up fetches {known}",
                version::shown(version::OLDEST)
            ),
            _ => format!(
                "set-up does not know torch {name}. It fetches {known}; to use another one from {} on, install it and \
                 set LIBTORCH to its folder",
                version::shown(version::OLDEST)
            ),
        }))
    }

    /// The requirements to give to pip, one wheel each, for a processor.
    pub fn requirements(&self, arch: &str) -> Vec<String> {
        let cuda = match arch {
            "aarch64" => self.cuda_on_aarch64,
            _ => self.cuda_on_x86_64,
        };
        let mut requirements = vec![format!("torch=={}", self.version)];
        requirements.extend(cuda.iter().map(|cuda| (*cuda).to_owned()));
        requirements
    }
}

/// A remark on a version that is newer than any that Tandem is tested with.
pub fn remark(stated: &str) -> Option<String> {
    let newest = version::minor(NEWEST.version)?;
    (version::minor(stated)? > newest).then(|| {
        format!(
            "libtorch {stated} is newer than those that Tandem was tested with, {} to {}. It is expected to work; if it \
             does not, run `cargo xtask setup --torch {}`",
            version::shown(version::OLDEST),
            version::shown(newest),
            version::shown(newest)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_short_and_a_long_name() {
        for (name, version) in [
            ("2.10", "2.10.0"),
            ("2.12", "2.12.1"),
            ("2.12.1", "2.12.1"),
            ("2.15", "2.15.0"),
        ] {
            assert_eq!(Release::named(name).map(|r| r.version), Ok(version));
        }
        assert_eq!(NEWEST.version, "2.15.0");
        assert_eq!(OLDEST.version, "2.10.0");
        let minors = RELEASES
            .each_ref()
            .map(|release| version::minor(release.version));
        assert!(minors.is_sorted(), "oldest first: {minors:?}");
        assert_eq!(minors[0], Some(version::OLDEST));
    }

    /// The crate that opens libtorch says the same; xtask must not depend on it, so its source is read.
    #[test]
    fn what_is_fetched_is_what_programs_accept() {
        let root = crate::workspace::Workspace::of_this_checkout();
        let source = root.root().join("crates/torch/src/version.rs");
        let source = std::fs::read_to_string(source).expect("the versions of the crate");
        for (name, release) in [("OLDEST", OLDEST), ("NEWEST_TESTED", NEWEST)] {
            let numbers = release.version.replace('.', ", ");
            let line = format!("pub const {name}: Version = Version::new({numbers});");
            assert!(source.contains(&line), "crates/torch lacks: {line}");
        }
    }

    #[test]
    fn a_release_that_is_not_there_is_refused_with_those_that_are() {
        for name in ["2.9", "2.9.1", "1.13", "2.1"] {
            let error = Release::named(name).expect_err("too old").to_string();
            assert!(
                error.contains(&format!("torch {name} is too old")),
                "{error}"
            );
            assert!(
                error.contains("2.10.0, 2.11.0, 2.12.1, 2.13.0, 2.14.1, 2.15.0"),
                "{error}"
            );
        }
        for name in ["2.16", "2.14.0", "2", "newest", ""] {
            let error = Release::named(name).expect_err("unknown").to_string();
            assert!(error.contains("does not know"), "{error}");
            assert!(error.contains("2.10.0, 2.11.0"), "{error}");
        }
    }

    #[test]
    fn every_release_brings_the_cuda_libraries_that_it_links() {
        let of = |name, arch| {
            Release::named(name)
                .expect("in the table")
                .requirements(arch)
        };
        assert_eq!(
            of("2.10", "x86_64"),
            [
                "torch==2.10.0",
                "nvidia-cuda-cupti-cu12==12.8.90",
                "nvidia-cuda-runtime-cu12==12.8.90"
            ]
        );
        assert_eq!(of("2.10", "aarch64"), ["torch==2.10.0"]);
        assert_eq!(of("2.13", "x86_64"), of("2.13", "aarch64"));
        assert_eq!(
            of("2.15", "aarch64"),
            [
                "torch==2.15.0",
                "nvidia-cuda-cupti==13.2.86",
                "nvidia-cuda-runtime==13.2.86"
            ]
        );
    }

    #[test]
    fn only_what_is_newer_than_all_tested_versions_gets_a_remark() {
        assert_eq!(remark("2.10.0"), None);
        assert_eq!(
            remark("2.15.3+cpu"),
            None,
            "a patch of a tested version is no news"
        );
        let text = remark("2.16.0").expect("untested");
        assert!(
            text.contains("2.16.0") && text.contains("2.10 to 2.15"),
            "{text}"
        );
    }
}
