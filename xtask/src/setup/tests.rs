//! Set-up from end to end, with a shell script in the place of Python and pip that serves tiny wheels.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::releases::RELEASES;
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
        make_libtorch(&at.join("site/torch"), torch.unwrap_or(NEWEST.version));
        let has_torch = match torch {
            Some(version) => format!("echo {version}+cpu; echo {}/site/torch", at.display()),
            None => ":".to_owned(),
        };
        // `-c` is the inspection; otherwise the arguments are `-m pip ...`, and the last one is the requirement, whose
        // wheel is named almost like it.
        let script = format!(
            r#"#!/bin/sh
if [ "$1" = -c ]; then echo 3.11; {has_torch}; exit 0; fi
[ -e {at}/no-pip ] && exit 1
case "$*" in *--version) exit 0;; esac
[ -e {at}/offline ] && {{ echo "ERROR: Max retries exceeded" >&2; exit 1; }}
while [ "$1" != --dest ]; do shift; done
echo "$3" >> {at}/fetched
cp {at}/index/$(echo "$3" | sed 's/-/_/g; s/==/-/')-* "$2"
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

    /// What is in use after a run of `cargo xtask setup` with what `request` says: where from, and the version.
    fn ask(&self, request: &Request) -> Result<(String, String), String> {
        provide(&self.workspace(), &self.surroundings, request)
            .map(|libtorch| (libtorch.origin, libtorch.version))
            .map_err(|error| format!("{error:#}"))
    }

    fn provide(&self) -> Result<String, String> {
        self.ask(&Request::default()).map(|(origin, _)| origin)
    }

    fn provide_release(&self, name: &str) -> Result<String, String> {
        let release = Release::named(name).map_err(|error| error.to_string())?;
        let request = Request {
            release: Some(release),
            force: false,
        };
        self.ask(&request).map(|(origin, _)| origin)
    }

    fn link(&self) -> PathBuf {
        fs::read_link(self.workspace().libtorch()).expect("a link")
    }

    /// The names in `.libtorch`.
    fn held(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.workspace().libtorch_home())
            .expect("list")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("a name")
            })
            .collect();
        names.sort();
        names
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
    let status = Command::new("cc")
        .args(["-shared", "-x", "c", "/dev/null", "-o"])
        .arg(&library)
        .status()
        .expect("run the compiler");
    assert!(status.success(), "the compiler made no library");
    let library = fs::read(library).expect("read the library");
    vec![
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

/// The wheels of three releases, with what they need on this machine.
fn make_wheels(index: &Path) {
    fs::create_dir_all(index).expect("create");
    for version in ["2.10.0", "2.11.0", "2.15.0"] {
        let mut files: Vec<_> = libtorch_files(version)
            .into_iter()
            .map(|(path, content)| (format!("torch/{path}"), content))
            .collect();
        for unneeded in ["torch/lib/libtorch_cuda.so", "torch/include/torch/torch.h"] {
            files.push((unneeded.to_owned(), b"unneeded".to_vec()));
        }
        make_wheel(&index.join(format!("torch-{version}-cp312-any.whl")), files);
    }
    let library = |path: &str| vec![(path.to_owned(), b"stand-in".to_vec())];
    for (wheel, file) in [
        (
            "nvidia_cuda_cupti_cu12-12.8.90-any.whl",
            "nvidia/cuda_cupti/lib/libcupti.so.12",
        ),
        (
            "nvidia_cuda_runtime_cu12-12.8.90-any.whl",
            "nvidia/cuda_runtime/lib/libcudart.so.12",
        ),
        (
            "nvidia_cuda_cupti-13.0.85-any.whl",
            "nvidia/cu13/lib/libcupti.so.13",
        ),
        (
            "nvidia_cuda_runtime-13.0.96-any.whl",
            "nvidia/cu13/lib/libcudart.so.13",
        ),
        (
            "nvidia_cuda_cupti-13.2.86-any.whl",
            "nvidia/cu13/lib/libcupti.so.13",
        ),
        (
            "nvidia_cuda_runtime-13.2.86-any.whl",
            "nvidia/cu13/lib/libcudart.so.13",
        ),
    ] {
        make_wheel(&index.join(wheel), library(file));
    }
}

fn make_wheel(path: &Path, files: Vec<(String, Vec<u8>)>) {
    let file = fs::File::create(path).expect("create");
    let mut archive = zip::ZipWriter::new(file);
    for (path, content) in files {
        archive
            .start_file(path, zip::write::SimpleFileOptions::default())
            .expect("start a member");
        archive.write_all(&content).expect("write a member");
    }
    archive.finish().expect("finish the wheel");
}

/// Leaves half of a file.
fn cut(path: &Path) -> Vec<u8> {
    let whole = fs::read(path).expect("read");
    fs::write(path, &whole[..whole.len() / 2]).expect("cut the file");
    whole
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
    assert!(
        !libtorch.join("include").exists(),
        "nothing is compiled against it"
    );
    assert_eq!(fixture.link(), Path::new("2.15.0"));

    let message = fixture.provide().expect("second run");
    assert!(message.contains("fetched earlier"), "{message}");
    assert_eq!(fixture.downloads(), 0);
    assert_eq!(
        fixture.held(),
        ["2.15.0", "lock", "torch"],
        "nothing temporary stays"
    );
}

#[test]
fn damage_is_healed() {
    let fixture = Fixture::new(None);
    fixture.provide().expect("first run");
    fixture.downloads();
    let library = fixture.workspace().libtorch().join("lib/libtorch_cpu.so");
    let whole = cut(&library);
    fixture.provide().expect("healing run");
    assert_eq!(fixture.downloads(), 3);
    assert_eq!(fs::read(&library).expect("read"), whole);
}

#[test]
fn a_damaged_manifest_is_healed() {
    let fixture = Fixture::new(None);
    fixture.provide_release("2.11").expect("first run");
    fixture.downloads();
    let folder = fixture.workspace().libtorch_home().join("2.11.0");
    let manifest = folder.join("tandem-manifest.txt");
    let whole = fs::read_to_string(&manifest).expect("read");
    for damaged in ["", "not a manifest\n", "00000000 1 lib/libtorch_cpu.so\n"] {
        fs::write(&manifest, damaged).expect("write");
        fixture.provide().expect("healing run");
        assert_eq!(fixture.downloads(), 3, "{damaged:?}");
        assert_eq!(fs::read_to_string(&manifest).expect("read"), whole);
        // The version that was chosen, not the newest.
        assert_eq!(fixture.held(), ["2.11.0", "lock", "torch"]);
    }
    // Without a manifest, nobody knows whether a folder of set-up is whole: it is not asked for by name then.
    fs::remove_file(&manifest).expect("remove");
    fixture.provide_release("2.11").expect("healing run");
    assert_eq!(fixture.downloads(), 3);
    assert_eq!(fs::read_to_string(&manifest).expect("read"), whole);
}

#[test]
fn several_versions_stay_side_by_side() {
    let fixture = Fixture::new(None);
    fixture.provide().expect("the newest");
    assert_eq!(fixture.downloads(), 3);
    let home = fixture.workspace().libtorch_home();

    let origin = fixture.provide_release("2.10").expect("the oldest");
    assert!(origin.contains("fetched with pip"), "{origin}");
    // On aarch64 this one is a build without CUDA.
    let cuda = usize::from(std::env::consts::ARCH != "aarch64");
    assert_eq!(fixture.downloads(), 1 + 2 * cuda);
    assert_eq!(home.join("2.10.0/lib/libcupti.so.12").exists(), cuda == 1);
    assert_eq!(fixture.link(), Path::new("2.10.0"));
    assert_eq!(fixture.held(), ["2.10.0", "2.15.0", "lock", "torch"]);

    // What was chosen stays chosen until another one is.
    let (_, version) = fixture.ask(&Request::default()).expect("plain run");
    assert_eq!(version, "2.10.0");
    fixture.provide_release("2.15.0").expect("switch back");
    assert_eq!(fixture.link(), Path::new("2.15.0"));
    fixture.provide_release("2.10.0").expect("and forth");
    let force = Request {
        force: true,
        release: None,
    };
    let (_, version) = fixture.ask(&force).expect("choose again");
    assert_eq!(version, "2.15.0");
    assert_eq!(fixture.link(), Path::new("2.15.0"));
    assert_eq!(fixture.downloads(), 0, "both are there");
}

#[test]
fn the_link_is_switched_without_a_gap() {
    let fixture = Fixture::new(None);
    for release in ["2.10", "2.11"] {
        fixture.provide_release(release).expect("fetched");
    }
    let place = fixture.workspace().libtorch();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                fs::read(place.join("version.py")).expect("it is always there");
                reads += 1;
            }
            reads
        });
        for turn in 0..500 {
            let target = ["2.10.0", "2.11.0"][turn % 2];
            install::link(&place, Path::new(target)).expect("switch");
        }
        done.store(true, Ordering::Relaxed);
        let reads = reader.join().expect("no read failed");
        assert!(reads > 0, "nothing was read meanwhile");
    });
    assert_eq!(fixture.link(), Path::new("2.11.0"));
}

#[test]
fn a_folder_in_the_place_of_the_link_is_used_and_replaced_on_request() {
    let fixture = Fixture::new(None);
    let place = fixture.workspace().libtorch();
    make_libtorch(&place, "2.13.0");
    let origin = fixture.provide().expect("it serves");
    assert!(origin.contains("by hand"), "{origin}");
    assert_eq!(fixture.downloads(), 0);
    fixture.provide_release("2.11").expect("another one");
    assert_eq!(fixture.link(), Path::new("2.11.0"));
    assert_eq!(fixture.held(), ["2.11.0", "lock", "torch"]);
}

#[test]
fn a_version_that_does_not_load_is_not_switched_to() {
    let fixture = Fixture::new(None);
    fixture.provide().expect("the newest");
    let files = vec![
        ("torch/lib/libtorch_cpu.so".to_owned(), vec![b'x'; 100]),
        ("torch/lib/libc10.so".to_owned(), vec![b'x'; 100]),
        (
            "torch/version.py".to_owned(),
            b"__version__ = '2.11.0'\n".to_vec(),
        ),
    ];
    make_wheel(&fixture.path("index/torch-2.11.0-cp312-any.whl"), files);
    let error = fixture.provide_release("2.11").expect_err("no library");
    assert!(error.contains("does not load"), "{error}");
    assert_eq!(fixture.link(), Path::new("2.15.0"), "it still works");
}

#[test]
fn a_run_that_was_cut_off_goes_on() {
    let fixture = Fixture::new(None);
    let home = fixture.workspace().libtorch_home();
    fs::create_dir_all(home.join("partial/2.15.0/lib")).expect("create");
    fs::write(home.join("partial/2.15.0/lib/libtorch_cpu.so"), "half").expect("write");
    symlink("nowhere", home.join("new-link")).expect("link");
    fs::create_dir_all(home.join("wheels")).expect("create");
    let torch = "torch-2.15.0-cp312-any.whl";
    let runtime = "nvidia_cuda_runtime-13.2.86-any.whl";
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
fn a_python_torch_of_a_version_that_serves_is_linked() {
    for version in ["2.10.0", "2.13.0", NEWEST.version, "2.99.1"] {
        let fixture = Fixture::new(Some(version));
        let message = fixture.provide().expect("run");
        assert!(message.contains("Python's torch"), "{message}");
        assert_eq!(fixture.downloads(), 0);
        let target = fixture.link();
        assert!(target.ends_with("site/torch"), "{}", target.display());

        let message = fixture.provide().expect("second run");
        assert!(message.contains("a link to"), "{message}");
    }
}

#[test]
fn a_release_that_is_asked_for_goes_before_all_others() {
    let mut fixture = Fixture::new(Some("2.13.0"));
    let own = fixture.path("own");
    make_libtorch(&own, "2.14.0");
    fixture.surroundings.libtorch = Some(("LIBTORCH", own));
    let message = fixture.provide_release("2.11").expect("run");
    assert!(message.contains("fetched with pip"), "{message}");
    assert_eq!(fixture.link(), Path::new("2.11.0"));
}

#[test]
fn a_version_that_set_up_does_not_know_is_refused() {
    let fixture = Fixture::new(None);
    let error = fixture.provide_release("2.9.1").expect_err("too old");
    assert!(error.contains("2.9.1 is too old"), "{error}");
    for release in RELEASES {
        assert!(error.contains(release.version), "{error}");
    }
}

#[test]
fn a_python_torch_that_is_too_old_is_left_alone() {
    let fixture = Fixture::new(Some("2.9.1"));
    let message = fixture.provide().expect("run");
    assert!(message.contains("fetched with pip"), "{message}");
    assert_eq!(fixture.downloads(), 3);
}

#[test]
fn libtorch_from_the_environment_is_used_or_refused() {
    let mut fixture = Fixture::new(None);
    let own = fixture.path("own");
    make_libtorch(&own, "2.13.0");
    fixture.surroundings.libtorch = Some(("LIBTORCH", own.clone()));
    let message = fixture.provide().expect("run");
    assert!(message.contains("LIBTORCH"), "{message}");
    assert_eq!(fixture.downloads(), 0);
    assert!(fixture.workspace().libtorch().join("version.py").exists());

    fs::write(own.join("version.py"), "__version__ = '2.8.0'\n").expect("write");
    let error = fixture.provide().expect_err("another version");
    assert!(
        error.contains("2.8.0") && error.contains("2.10 or newer"),
        "{error}"
    );

    fixture.surroundings.libtorch = Some(("TANDEM_LIBTORCH", fixture.path("nowhere")));
    let error = fixture.provide().expect_err("nothing there");
    assert!(error.contains("not a complete libtorch"), "{error}");
    assert!(error.contains("TANDEM_LIBTORCH names"), "{error}");
}

#[test]
fn the_environment_may_name_the_folder_of_the_libraries() {
    let mut fixture = Fixture::new(None);
    make_libtorch(&fixture.path("own"), "2.12.1");
    fixture.surroundings.libtorch = Some(("LIBTORCH", fixture.path("own/lib")));
    let (_, version) = fixture.ask(&Request::default()).expect("run");
    assert_eq!(version, "2.12.1+cu130");
    // The link is to what holds `lib`, like every other.
    let place = fixture.workspace().libtorch();
    assert!(place.join("lib/libtorch_cpu.so").exists());
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
