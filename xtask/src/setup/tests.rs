//! Set-up from end to end, with a shell script in the place of Python and pip that serves tiny wheels.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// A checkout with a fake Python beside it.
struct Fixture {
    directory: tempfile::TempDir,
    surroundings: Surroundings,
}

impl Fixture {
    /// `torch` is the version of the torch package that the fake Python has, if any.
    fn new(torch: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = directory.path();
        make_wheels(&at.join("index"));
        make_libtorch(&at.join("site/torch"), torch.unwrap_or(TORCH_VERSION));
        let has_torch = match torch {
            Some(version) => format!("echo {version}+cpu; echo {}/site/torch", at.display()),
            None => ":".to_owned(),
        };
        // `-c` is the inspection; otherwise the arguments are `-m pip ...`, and the last one is the requirement.
        let script = format!(
            r#"#!/bin/sh
if [ "$1" = -c ]; then echo 3.11; {has_torch}; exit 0; fi
[ -e {at}/no-pip ] && exit 1
case "$*" in *--version) exit 0;; esac
[ -e {at}/offline ] && {{ echo "ERROR: Max retries exceeded" >&2; exit 1; }}
while [ "$1" != --dest ]; do shift; done
echo "$3" >> {at}/fetched
case "$3" in
    torch*) name=torch-2.13.0- ;;
    *cupti*) name=nvidia_cuda_cupti-13.0.85- ;;
    *) name=nvidia_cuda_runtime-13.0.96- ;;
esac
cp {at}/index/$name* "$2"
"#,
            at = at.display()
        );
        let source = at.join("python3.sh");
        fs::write(&source, script).expect("write the fake Python");
        // Copied by another process: a file that this one has open for writing, even in a child that another test is
        // just starting, cannot be executed.
        let python = at.join("python3");
        let status = Command::new("install")
            .args(["-m", "755"])
            .args([&source, &python])
            .status()
            .expect("run install");
        assert!(status.success(), "the fake Python is not installed");
        let surroundings = Surroundings {
            libtorch: None,
            pythons: vec![python],
            compiler: "c++".into(),
        };
        Self {
            directory,
            surroundings,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn workspace(&self) -> Workspace {
        Workspace::at(&self.path("checkout"))
    }

    fn provide(&self) -> Result<String, String> {
        provide(&self.workspace(), &self.surroundings, false).map_err(|error| format!("{error:#}"))
    }

    /// How many downloads there were since the last call.
    fn downloads(&self) -> usize {
        let log = self.path("fetched");
        let count = fs::read_to_string(&log).unwrap_or_default().lines().count();
        let _ = fs::remove_file(log);
        count
    }
}

/// Files that pass for a libtorch: the library is real, an empty one, so that it loads.
fn libtorch_files(version: &str) -> Vec<(&'static str, Vec<u8>)> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let library = directory.path().join("empty.so");
    let status = Command::new("c++")
        .args(["-shared", "-x", "c++", "/dev/null", "-o"])
        .arg(&library)
        .status()
        .expect("run the compiler");
    assert!(status.success(), "the compiler made no library");
    let library = fs::read(library).expect("read the library");
    vec![
        (
            "include/torch/csrc/api/include/torch/torch.h",
            b"// a header".to_vec(),
        ),
        ("lib/libtorch_cpu.so", library.clone()),
        ("lib/libtorch.so", library.clone()),
        ("lib/libc10.so", library),
        (
            "version.py",
            format!("__version__ = '{version}+cu130'\n").into_bytes(),
        ),
    ]
}

fn make_libtorch(directory: &Path, version: &str) {
    for (path, content) in libtorch_files(version) {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("create");
        fs::write(path, content).expect("write");
    }
}

fn make_wheels(index: &Path) {
    fs::create_dir_all(index).expect("create");
    let torch = libtorch_files(TORCH_VERSION)
        .into_iter()
        .map(|(path, content)| (format!("torch/{path}"), content))
        .chain([(
            "torch/lib/libtorch_cuda.so".to_owned(),
            b"unneeded".to_vec(),
        )])
        .collect();
    let library = |name: &str| vec![(format!("nvidia/cu13/lib/{name}"), b"stand-in".to_vec())];
    for (wheel, files) in [
        ("torch-2.13.0-cp311-cp311-any.whl", torch),
        (
            "nvidia_cuda_cupti-13.0.85-any.whl",
            library("libcupti.so.13"),
        ),
        (
            "nvidia_cuda_runtime-13.0.96-any.whl",
            library("libcudart.so.13"),
        ),
    ] {
        let file = fs::File::create(index.join(wheel)).expect("create");
        let mut archive = zip::ZipWriter::new(file);
        for (path, content) in files {
            archive
                .start_file(path, zip::write::SimpleFileOptions::default())
                .expect("start a member");
            archive.write_all(&content).expect("write a member");
        }
        archive.finish().expect("finish the wheel");
    }
}

#[test]
fn a_first_run_fetches_and_a_second_fetches_nothing() {
    let fixture = Fixture::new(None);
    let message = fixture.provide().expect("first run");
    assert!(message.contains("fetched with pip"), "{message}");
    assert_eq!(fixture.downloads(), 3);
    let libtorch = fixture.workspace().libtorch();
    assert!(libtorch.join("lib/libcupti.so.13").exists());
    assert!(!libtorch.join("lib/libtorch_cuda.so").exists());

    let message = fixture.provide().expect("second run");
    assert!(message.contains("fetched earlier"), "{message}");
    assert_eq!(fixture.downloads(), 0);
    let mut left: Vec<_> = fs::read_dir(fixture.workspace().libtorch_home())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["lock", "torch"], "nothing temporary stays");
}

#[test]
fn damage_is_healed() {
    let fixture = Fixture::new(None);
    fixture.provide().expect("first run");
    fixture.downloads();
    let library = fixture.workspace().libtorch().join("lib/libtorch_cpu.so");
    let whole = fs::read(&library).expect("read");
    fs::write(&library, &whole[..whole.len() / 2]).expect("cut the library");
    fixture.provide().expect("healing run");
    assert_eq!(fixture.downloads(), 3);
    assert_eq!(fs::read(&library).expect("read"), whole);
}

#[test]
fn a_run_that_was_cut_off_goes_on() {
    let fixture = Fixture::new(None);
    let home = fixture.workspace().libtorch_home();
    fs::create_dir_all(home.join("partial/torch/lib")).expect("create");
    fs::write(home.join("partial/torch/lib/libtorch_cpu.so"), "half").expect("write");
    fs::create_dir_all(home.join("wheels")).expect("create");
    let torch = "torch-2.13.0-cp311-cp311-any.whl";
    let runtime = "nvidia_cuda_runtime-13.0.96-any.whl";
    let index = fixture.path("index");
    fs::copy(index.join(torch), home.join("wheels").join(torch)).expect("copy");
    fs::write(home.join("wheels").join(runtime), "half a wheel").expect("write");

    fixture.provide().expect("second try");
    assert_eq!(
        fixture.downloads(),
        2,
        "the whole wheel is not fetched again"
    );
    assert!(
        fixture
            .workspace()
            .libtorch()
            .join("lib/libcudart.so.13")
            .exists()
    );
}

#[test]
fn a_python_torch_of_the_right_version_is_linked() {
    let fixture = Fixture::new(Some(TORCH_VERSION));
    let message = fixture.provide().expect("run");
    assert!(message.contains("Python's torch"), "{message}");
    assert_eq!(fixture.downloads(), 0);
    let target = fs::read_link(fixture.workspace().libtorch()).expect("a link");
    assert!(target.ends_with("site/torch"), "{}", target.display());

    let message = fixture.provide().expect("second run");
    assert!(message.contains("a link to"), "{message}");
}

#[test]
fn a_python_torch_of_another_version_is_left_alone() {
    let fixture = Fixture::new(Some("2.9.1"));
    let message = fixture.provide().expect("run");
    assert!(message.contains("fetched with pip"), "{message}");
    assert_eq!(fixture.downloads(), 3);
}

#[test]
fn libtorch_from_the_environment_is_used_or_refused() {
    let mut fixture = Fixture::new(None);
    let own = fixture.path("own");
    make_libtorch(&own, TORCH_VERSION);
    fixture.surroundings.libtorch = Some(own.clone());
    let message = fixture.provide().expect("run");
    assert!(message.contains("LIBTORCH"), "{message}");
    assert_eq!(fixture.downloads(), 0);
    assert!(fixture.workspace().libtorch().join("version.py").exists());

    fs::write(own.join("version.py"), "__version__ = '2.8.0'\n").expect("write");
    let error = fixture.provide().expect_err("another version");
    assert!(
        error.contains("2.8.0") && error.contains("2.13.0"),
        "{error}"
    );

    fixture.surroundings.libtorch = Some(fixture.path("nowhere"));
    let error = fixture.provide().expect_err("nothing there");
    assert!(error.contains("not a complete libtorch"), "{error}");
}

#[test]
fn what_is_missing_is_said() {
    let mut fixture = Fixture::new(None);
    fs::write(fixture.path("offline"), "").expect("write");
    let error = fixture.provide().expect_err("offline");
    assert!(error.contains("cannot be reached"), "{error}");

    fs::write(fixture.path("no-pip"), "").expect("write");
    let error = fixture.provide().expect_err("no pip");
    assert!(error.contains("has no pip"), "{error}");

    fixture.surroundings.pythons = vec!["no-such-python".into()];
    let error = fixture.provide().expect_err("no Python");
    assert!(error.contains("no Python 3"), "{error}");
    assert!(
        !fixture.workspace().libtorch().exists(),
        "nothing half-done is in place"
    );
}
