//! The simulated GPU of `crates/simulated`, where programs look for the real one's libraries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Makes `command` a program of a machine with simulated GPUs.
///
/// # Panics
/// When the library was not built: the crate of the test must have `tandem-simulated` among its `dev-dependencies`.
pub(super) fn install(command: &mut Command) {
    // Once, because tests are threads.
    static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(libraries);
    let mut folders = vec![LIBRARIES.clone()];
    if let Some(path) = std::env::var_os(SEARCH_PATH) {
        folders.extend(std::env::split_paths(&path));
    }
    let path = std::env::join_paths(folders).expect("a path of folders");
    command.env(SEARCH_PATH, path);
}

/// Where the loader looks first.
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

/// A folder with the library under the names of NVIDIA's.
fn libraries() -> PathBuf {
    let program = std::env::current_exe().expect("this binary has a path");
    let built = program.parent().expect("in a folder");
    let library = built.join("libtandem_simulated.so");
    assert!(
        library.is_file(),
        "{} is not there: tandem-simulated belongs into the dev-dependencies",
        library.display()
    );
    let folder = built.join("simulated-gpu");
    std::fs::create_dir_all(&folder).expect("a folder beside the binary");
    // Under every name that is tried, or a machine's own libraries would come first.
    for name in ["libcuda.so", "libcuda.so.1", "libnccl.so", "libnccl.so.2"] {
        link(&library, &folder.join(name));
    }
    folder
}

/// Another binary's tests may do the same at this moment.
fn link(library: &Path, name: &Path) {
    if std::fs::read_link(name).is_ok_and(|target| target == library) {
        return;
    }
    let own = name.with_extension(format!("{}", std::process::id()));
    let _left_over = std::fs::remove_file(&own);
    std::os::unix::fs::symlink(library, &own).expect("a link");
    std::fs::rename(&own, name).expect("a link under its name");
}
