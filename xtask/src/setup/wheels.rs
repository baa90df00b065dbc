//! A CPU-only libtorch from PyPI: three wheels, of which a part is unpacked.
//!
//! The torch wheels for Linux are CUDA builds, but their CPU part (`libtorch_cpu.so`) stands alone except for two small
//! CUDA libraries that its profiler links. Taking just those files gives the same kernels as `pip install torch` for
//! 0.5 GB on disk instead of 5 GB. pip downloads (it knows the user's mirrors, proxies and certificates, and checks
//! hashes), but nothing is installed, and any Python version will do.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::manifest::{self, Entry};
use super::python::Python;
use super::version::TORCH_VERSION;

/// A wheel to fetch. The CUDA libraries are those that torch's own metadata asks for.
struct Wheel {
    requirement: &'static str,
    /// How the wheel's file name begins.
    file_prefix: &'static str,
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch==2.13.0",
        file_prefix: "torch-2.13.0-",
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        file_prefix: "nvidia_cuda_cupti-13.0.85-",
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        file_prefix: "nvidia_cuda_runtime-13.0.96-",
    },
];

/// The Python versions that torch 2.13.0 has wheels for. The C++ inside is the same for all of them.
const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 10..=14;

/// Downloads the wheels into `downloads`, except those that are there already from a run that was cut off later.
/// `tmp` is where pip puts what it has not finished; beside the target, because `/tmp` is often small.
pub fn download(python: &Python, downloads: &Path, tmp: &Path) -> Result<Vec<PathBuf>> {
    let platforms = platforms(std::env::consts::OS, std::env::consts::ARCH)?;
    for directory in [downloads, tmp] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut paths = Vec::new();
    for wheel in WHEELS {
        if let Some(path) = complete_download(downloads, &wheel)? {
            println!("{}: downloaded before", wheel.requirement);
            paths.push(path);
            continue;
        }
        println!("fetching {} with pip", wheel.requirement);
        python.require_pip()?;
        run_pip(python, &wheel, &platforms, downloads, tmp)?;
        match complete_download(downloads, &wheel)? {
            Some(path) => paths.push(path),
            None => bail!(
                "pip downloaded {}, but no whole wheel {}*.whl is in {}",
                wheel.requirement,
                wheel.file_prefix,
                downloads.display()
            ),
        }
    }
    Ok(paths)
}

/// The platform tags to ask pip for, newest first: it does not infer that an older tag also serves.
fn platforms(os: &str, arch: &str) -> Result<Vec<String>> {
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") || !cfg!(target_env = "gnu") {
        bail!(
            "there are no libtorch {TORCH_VERSION} wheels that serve {os} on {arch} with this C library: Tandem runs on \
             Linux with glibc, on x86_64 and aarch64. If you have built libtorch {TORCH_VERSION} yourself, set \
             LIBTORCH to its directory"
        );
    }
    let mut tags: Vec<String> = (17..=28)
        .rev()
        .map(|minor| format!("manylinux_2_{minor}_{arch}"))
        .collect();
    tags.push(format!("manylinux2014_{arch}"));
    Ok(tags)
}

/// The wheel in `downloads`, if it is whole. One that is not is removed.
fn complete_download(downloads: &Path, wheel: &Wheel) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(downloads).with_context(|| format!("cannot list {}", downloads.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(wheel.file_prefix) || !name.ends_with(".whl") {
            continue;
        }
        // A zip file's directory is its end, so a file that was cut off does not open.
        if ZipArchive::new(fs::File::open(&path)?).is_ok() {
            return Ok(Some(path));
        }
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(None)
}

/// Downloads one wheel; pip's progress goes to the terminal.
fn run_pip(
    python: &Python,
    wheel: &Wheel,
    platforms: &[String],
    downloads: &Path,
    tmp: &Path,
) -> Result<()> {
    let (_, minor) = python.version;
    let minor = if PYTHON_MINORS.contains(&minor) {
        minor
    } else {
        12
    };
    let mut command = python.pip();
    command
        // pip's cache would keep a second copy of half a gigabyte.
        .args([
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
        ])
        .args(["--implementation", "cp", "--python-version"])
        .arg(format!("3.{minor}"));
    for platform in platforms {
        command.args(["--platform", platform]);
    }
    command
        .arg("--dest")
        .arg(downloads)
        .arg(wheel.requirement)
        .env("TMPDIR", tmp)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start pip")?;
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    if !child.wait()?.success() {
        bail!("{}", explain(wheel.requirement, &complaint));
    }
    Ok(())
}

/// One sentence for what pip writes a page about, with the end of that page.
fn explain(requirement: &str, complaint: &str) -> String {
    let says = |needles: &[&str]| needles.iter().any(|needle| complaint.contains(needle));
    let reason = if says(&["No space left on device", "Errno 28"]) {
        "the disk is full: set-up needs about 1.2 GB, of which 0.5 GB stay".to_owned()
    } else if says(&[
        "Connection",
        "connection",
        "Temporary failure in name resolution",
        "Max retries exceeded",
        "timed out",
        "ProxyError",
        "SSLError",
    ]) {
        format!(
            "the package index cannot be reached. Connect this machine to a network or point pip to your mirror \
             (PIP_INDEX_URL), or bring a libtorch {TORCH_VERSION} and set LIBTORCH to its directory"
        )
    } else if says(&["No matching distribution found"]) {
        format!(
            "the package index that pip uses cannot be reached, or has none for this machine. Point pip to one that \
             has (PIP_INDEX_URL), or bring a libtorch {TORCH_VERSION} and set LIBTORCH to its directory"
        )
    } else {
        "pip failed".to_owned()
    };
    let lines: Vec<&str> = complaint.trim().lines().collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n  ");
    format!("cannot fetch {requirement}: {reason}\npip says:\n  {tail}")
}

/// Unpacks the needed files of the wheels into `libtorch`, as `include/` and `lib/`, and writes their manifest.
pub fn unpack(wheels: &[PathBuf], libtorch: &Path) -> Result<()> {
    let mut entries = Vec::new();
    for path in wheels {
        let shown = path.display();
        println!(
            "unpacking {}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        let file = fs::File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let mut archive = ZipArchive::new(io::BufReader::new(file))
            .with_context(|| format!("{shown} is not a wheel"))?;
        for index in 0..archive.len() {
            let mut member = archive.by_index(index)?;
            let Some(target) = target_of(&member.name()?) else {
                continue;
            };
            let entry = Entry {
                size: member.size(),
                crc32: member.crc32(),
                path: target,
            };
            // Reading to the end makes the zip reader check the CRC.
            write_file(&libtorch.join(&entry.path), &mut member).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::StorageFull => anyhow::anyhow!(
                        "the disk is full: set-up needs about 1.2 GB, of which 0.5 GB stay"
                    ),
                    _ => anyhow::anyhow!("cannot unpack {} of {shown}: {error}", entry.path),
                }
            })?;
            entries.push(entry);
        }
    }
    // torch-sys reads this file, and refuses another version than its own.
    fs::write(libtorch.join("build-version"), TORCH_VERSION)?;
    manifest::write(libtorch, &entries)
}

/// Where a wheel's member goes below the libtorch directory; `None` leaves it out.
fn target_of(member: &str) -> Option<String> {
    if member.ends_with('/') || member.split('/').any(|part| part == "..") {
        return None;
    }
    if member == "torch/version.py" || member.starts_with("torch/include/") {
        return member.strip_prefix("torch/").map(str::to_owned);
    }
    if let Some(library) = member.strip_prefix("torch/lib/") {
        // What only CUDA or Python uses. The rest is kept by exclusion because it differs: libgomp may carry a hash
        // in its name, and the aarch64 build needs libraries of ARM.
        let unneeded = [
            "cuda",
            "nvrtc",
            "nvshmem",
            "python",
            "libshm",
            "global_deps",
        ];
        let wanted = !library.contains('/')
            && library.contains(".so")
            && !unneeded.iter().any(|part| library.contains(part));
        return wanted.then(|| format!("lib/{library}"));
    }
    // The two that libtorch_cpu.so itself links; they do nothing where there is no GPU.
    match member.rsplit_once('/') {
        Some((_, name @ ("libcupti.so.13" | "libcudart.so.13"))) => Some(format!("lib/{name}")),
        _ => None,
    }
}

fn write_file(path: &Path, content: &mut impl Read) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    io::copy(content, &mut file)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cpu_part_is_unpacked() {
        let target = |member| target_of(member);
        assert_eq!(
            target("torch/include/ATen/ATen.h").as_deref(),
            Some("include/ATen/ATen.h")
        );
        assert_eq!(
            target("torch/lib/libgomp-a34b3233.so.1").as_deref(),
            Some("lib/libgomp-a34b3233.so.1")
        );
        assert_eq!(
            target("torch/lib/libarm_compute.so").as_deref(),
            Some("lib/libarm_compute.so")
        );
        assert_eq!(
            target("nvidia/cu13/lib/libcupti.so.13").as_deref(),
            Some("lib/libcupti.so.13")
        );
        for unneeded in [
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libtorch_python.so",
            "torch/lib/libshm.so",
            "torch/lib/libshm/socket.h",
            "torch/nn/functional.py",
            "torch/include/",
            "torch/include/../../escape.h",
            "nvidia/cu13/lib/libnvperf_host.so",
        ] {
            assert_eq!(target(unneeded), None, "{unneeded}");
        }
    }

    #[test]
    fn machines_without_wheels_are_refused() {
        let error = platforms("macos", "aarch64").expect_err("no wheel");
        assert!(error.to_string().contains("macos on aarch64"), "{error}");
        let error = platforms("linux", "riscv64").expect_err("no wheel");
        assert!(error.to_string().contains("riscv64"), "{error}");
        let tags = platforms("linux", "aarch64").expect("served");
        assert_eq!(tags[0], "manylinux_2_28_aarch64");
    }

    #[test]
    fn pip_complaints_become_sentences() {
        let offline = "WARNING: Retrying (Retry(total=4, ...)) after connection broken by 'NewConnectionError('Failed \
                       to establish a new connection: [Errno -3] Temporary failure in name resolution')'\nERROR: Could \
                       not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\nERROR: No \
                       matching distribution found for torch==2.13.0\n";
        let text = explain("torch==2.13.0", offline);
        assert!(text.contains("cannot be reached"), "{text}");
        assert!(
            text.ends_with("No matching distribution found for torch==2.13.0"),
            "{text}"
        );

        let absent = "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: \
                      2.9.0)\nERROR: No matching distribution found for torch==2.13.0\n";
        assert!(explain("torch==2.13.0", absent).contains("has none for this machine"));
        let full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(explain("torch==2.13.0", full).contains("disk is full"));
        assert!(explain("torch==2.13.0", "ERROR: odd").contains("pip failed"));
    }
}
