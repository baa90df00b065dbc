//! A run's own folder, which must stay the one it was: a file system that is unmounted leaves another folder under the same
//! name, and one that was removed would be made anew by the next save. Nobody would find what is written there.
//!
//! A folder is known by a marker file with a number of its own, and by its inode. (Not by its device: a network file system
//! may come back under another number.)

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tandem_files::sync_parent;

use super::{Listed, LocalStore, PutMode, ReadAt, Store, StoreError, StoreErrorKind, Upload};

/// The file that tells a run's folder from any other.
const MARKER: &str = ".tandem_run";

/// Longer than any number, so that a foreign file costs no memory.
const MAX_MARKER_BYTES: u64 = 256;

/// How long another host's file system may take to show a new marker.
const MARKER_PATIENCE: Duration = Duration::from_secs(10);

/// The number of the run's folder `root`, which gets one if it has none.
///
/// # Errors
/// What the system said.
pub fn mark_folder(root: &Path) -> Result<String, StoreError> {
    let path = root.join(MARKER);
    let mark = || {
        match read_marker(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => return result,
        }
        let number = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let mut file = match File::create_new(&path) {
            Ok(file) => file,
            // Somebody else was quicker.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return read_marker(&path),
            Err(error) => return Err(error),
        };
        file.write_all(number.as_bytes())?;
        file.sync_all()?;
        sync_parent(&path)?;
        Ok(number.trim().to_owned())
    };
    mark().map_err(|error| failed("mark", &path, StoreErrorKind::Other, error))
}

fn read_marker(path: &Path) -> io::Result<String> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    File::open(path)?
        .take(MAX_MARKER_BYTES)
        .read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// A folder that is gone, or another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The folder.
    pub root: PathBuf,
    /// What is there instead.
    pub problem: String,
    /// Where everything is written since, if that is possible.
    pub refuge: Option<PathBuf>,
}

/// A [`LocalStore`] that looks before every operation whether its folder is still the same, and goes on elsewhere if not.
#[derive(Debug)]
pub struct WatchedStore {
    inner: LocalStore,
    root: PathBuf,
    number: String,
    inode: u64,
    refuge: Option<PathBuf>,
    /// Set once; the folder that comes back is not trusted with half a checkpoint.
    lost: OnceLock<(Lost, Option<LocalStore>)>,
}

impl WatchedStore {
    /// The store of the folder `root`, whose marker has `number` ([`mark_folder`]). `refuge` is where to write when it is
    /// lost.
    ///
    /// # Errors
    /// `root` is not the folder that was marked: this host sees another one under its name.
    pub fn open(
        root: impl Into<PathBuf>,
        number: &str,
        refuge: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        Self::open_within(MARKER_PATIENCE, root.into(), number, refuge)
    }

    fn open_within(
        patience: Duration,
        root: PathBuf,
        number: &str,
        refuge: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        let begun = Instant::now();
        let unmarked = |source: io::Error| failed("use", &root, StoreErrorKind::Other, source);
        // Network file systems show other hosts' files with a delay.
        while !read_marker(&root.join(MARKER)).is_ok_and(|own| own == number) {
            if begun.elapsed() >= patience {
                let problem = "rank 0 sees another folder under this name: all hosts must share the storage path";
                return Err(unmarked(io::Error::other(problem)));
            }
            sleep(Duration::from_millis(100));
        }
        let inode = fs::metadata(&root).map_err(unmarked)?.ino();
        Ok(Self {
            inner: LocalStore::new(&root),
            number: number.to_owned(),
            inode,
            refuge,
            lost: OnceLock::new(),
            root,
        })
    }

    /// Looks whether the folder is still there; what is known of it if not. Once lost, it stays lost.
    pub fn lost(&self) -> Option<&Lost> {
        if self.lost.get().is_none()
            && let Some(problem) = self.problem()
        {
            self.lost.get_or_init(|| self.moved(problem));
        }
        self.lost.get().map(|(lost, _)| lost)
    }

    /// Takes the folder for lost because of a `problem` that nobody sees from outside: it is full, or read only.
    pub fn leave(&self, problem: String) {
        self.lost.get_or_init(|| self.moved(problem));
    }

    /// What is wrong with the folder. A file system that does not answer at the moment has not lost it.
    fn problem(&self) -> Option<String> {
        let is_gone = |error: &io::Error| {
            let kinds = [
                ErrorKind::NotFound,
                ErrorKind::NotADirectory,
                ErrorKind::StaleNetworkFileHandle,
                ErrorKind::NotConnected,
            ];
            kinds.contains(&error.kind())
        };
        match fs::metadata(&self.root) {
            Err(error) if is_gone(&error) => return Some(format!("is gone ({error})")),
            Ok(metadata) if metadata.ino() != self.inode => {
                return Some(
                    "is another folder now (its file system was unmounted, or it was replaced)"
                        .to_owned(),
                );
            }
            _ => {}
        }
        match read_marker(&self.root.join(MARKER)) {
            Ok(number) if number != self.number => Some("belongs to another run now".to_owned()),
            Err(error) if is_gone(&error) => {
                Some(format!("has lost its marker file {MARKER} ({error})"))
            }
            _ => None,
        }
    }

    /// Goes on in the refuge, if it can be written to.
    fn moved(&self, problem: String) -> (Lost, Option<LocalStore>) {
        let refuge = self.refuge.clone().filter(|refuge| {
            let is_elsewhere = !refuge.starts_with(&self.root) && !self.root.starts_with(refuge);
            is_elsewhere && fs::create_dir_all(refuge).is_ok()
        });
        let store = refuge.as_ref().map(LocalStore::new);
        let lost = Lost {
            root: self.root.clone(),
            problem,
            refuge,
        };
        (lost, store)
    }

    /// Where an operation goes.
    fn place(&self, operation: &'static str) -> Result<&LocalStore, StoreError> {
        let Some(lost) = self.lost() else {
            return Ok(&self.inner);
        };
        match self.lost.get() {
            Some((_, Some(refuge))) => Ok(refuge),
            _ => Err(failed(
                operation,
                &self.root,
                StoreErrorKind::NotFound,
                io::Error::other(format!("the run's folder {}", lost.problem)),
            )),
        }
    }
}

impl Store for WatchedStore {
    fn locate(&self, path: &str) -> String {
        match self.lost.get() {
            Some((_, Some(refuge))) => refuge.locate(path),
            _ => self.inner.locate(path),
        }
    }

    fn create(&self, path: &str, size: u64) -> Result<Box<dyn Upload>, StoreError> {
        self.place("create a file in")?.create(path, size)
    }

    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError> {
        self.place("write to")?.put(path, bytes, mode)
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadAt>, StoreError> {
        self.place("read from")?.open(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.place("list")?.list(folder)
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.place("delete from")?.delete(path)
    }

    fn delete_folder(&self, folder: &str, chosen: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        self.place("delete from")?.delete_folder(folder, chosen)
    }
}

fn failed(
    operation: &'static str,
    path: &Path,
    kind: StoreErrorKind,
    source: io::Error,
) -> StoreError {
    StoreError {
        operation,
        location: path.display().to_string(),
        kind,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("run")).unwrap();
            Self { folder }
        }

        fn run(&self) -> PathBuf {
            self.folder.path().join("run")
        }

        fn store(&self, refuge: Option<PathBuf>) -> WatchedStore {
            let number = mark_folder(&self.run()).unwrap();
            WatchedStore::open(self.run(), &number, refuge).unwrap()
        }
    }

    #[test]
    fn a_folder_keeps_its_number() {
        let place = Place::new();
        let first = mark_folder(&place.run()).unwrap();
        assert_eq!(first.len(), 36, "{first}");
        assert_eq!(mark_folder(&place.run()).unwrap(), first);
        let store = place.store(None);
        store.put("a/b", b"x", PutMode::Replace).unwrap();
        assert_eq!(store.read("a/b").unwrap(), b"x");
        assert_eq!(store.lost(), None);
    }

    #[test]
    fn a_folder_that_is_gone_or_another_one_is_not_written_to() {
        type Change = fn(&Path);
        let changes: [(Change, &str); 4] = [
            (|run| fs::remove_dir_all(run).unwrap(), "is gone"),
            (
                |run| {
                    // What is under a mount point that has lost its file system.
                    fs::rename(run, run.with_file_name("elsewhere")).unwrap();
                    fs::create_dir(run).unwrap();
                },
                "is another folder now",
            ),
            (
                |run| fs::write(run.join(MARKER), "other").unwrap(),
                "belongs to another run now",
            ),
            (
                |run| fs::remove_file(run.join(MARKER)).unwrap(),
                "has lost its marker",
            ),
        ];
        for (change, words) in changes {
            let place = Place::new();
            let store = place.store(None);
            change(&place.run());
            let error = store.put("x", b"x", PutMode::Replace).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.is_not_found());
            assert!(!place.run().join("x").exists());
            assert!(store.list("").is_err() && store.create("x", 1).is_err());
            assert_eq!(store.lost().unwrap().refuge, None);
        }
    }

    #[test]
    fn the_refuge_takes_what_comes_after() {
        let place = Place::new();
        let refuge = place.folder.path().join("refuge/run");
        let store = place.store(Some(refuge.clone()));
        store.put("before", b"x", PutMode::Replace).unwrap();
        fs::remove_dir_all(place.run()).unwrap();
        store.put("after", b"y", PutMode::Replace).unwrap();
        assert_eq!(fs::read(refuge.join("after")).unwrap(), b"y");
        assert!(!place.run().exists());
        assert_eq!(store.lost().unwrap().refuge, Some(refuge));
        // One that comes back is no place for half a checkpoint.
        fs::create_dir(place.run()).unwrap();
        assert!(store.locate("after").ends_with("refuge/run/after"));
        let inside = Place::new();
        let store = inside.store(Some(inside.run().join("inside")));
        fs::remove_dir_all(inside.run()).unwrap();
        assert_eq!(store.lost().unwrap().refuge, None);
        assert!(!inside.run().exists());
    }

    #[test]
    fn a_host_that_sees_another_folder_says_so() {
        let place = Place::new();
        mark_folder(&place.run()).unwrap();
        let opened = WatchedStore::open_within(Duration::ZERO, place.run(), "another", None);
        let error = opened.unwrap_err();
        assert!(
            error.to_string().contains("all hosts must share"),
            "{error}"
        );
    }
}
