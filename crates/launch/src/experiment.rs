//! Experiments: their names and their folders, `{storage_path}/{name}/`.

use jiff::Timestamp;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Longest name, in bytes. File systems allow 255; files beside the folder may add a suffix.
const MAX_NAME_BYTES: usize = 200;

/// Why an experiment cannot have this name or this folder.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The name cannot be the name of a folder.
    #[error(
        "the experiment name {name:?} {problem}; pass another --experiment_name, such as qwen2-run_1"
    )]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The run's folder cannot be made or written to.
    #[error(
        "cannot write to the storage path {}: {source}; pass a folder you may write to, such as --storage_path ./runs",
        storage_path.display()
    )]
    NotWritable {
        /// The storage path.
        storage_path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A name for an experiment that was given none, such as `train_fsdp_2026-11-24_10-30-05_k3f9`.
///
/// `entry_point` is the program's name. The time is UTC; the random suffix keeps two runs apart that start in the
/// same second.
#[must_use]
pub fn generated_name(entry_point: &str) -> String {
    // std seeds every RandomState from the operating system; the hash of nothing is then a random number.
    let random = std::hash::RandomState::new().build_hasher().finish();
    name_at(entry_point, Timestamp::now(), random)
}

/// Checks that `name` can be the name of one folder.
///
/// # Errors
/// [`ExperimentError::Name`] says what is wrong with it.
pub fn validate_name(name: &str) -> Result<(), ExperimentError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name == "." || name == ".." {
        "means a folder that is there already"
    } else if name.contains(['/', '\\']) {
        "contains a path separator (the folder around it is --storage_path)"
    } else if name.chars().any(char::is_control) {
        "contains a control character"
    } else if name.trim() != name {
        "begins or ends with a space"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 200 bytes"
    } else {
        return Ok(());
    };
    Err(ExperimentError::Name {
        name: name.to_owned(),
        problem,
    })
}

/// Makes the folder `{storage_path}/{name}`, or takes the one that is there, and proves that it can be written to.
/// Returns its absolute path.
///
/// # Errors
/// [`ExperimentError`] when the name is not valid or the folder cannot be made or written to.
pub fn create_run_dir(storage_path: &Path, name: &str) -> Result<PathBuf, ExperimentError> {
    validate_name(name)?;
    let not_writable = |source| ExperimentError::NotWritable {
        storage_path: storage_path.to_owned(),
        source,
    };
    let run_dir = storage_path.join(name);
    std::fs::create_dir_all(&run_dir).map_err(not_writable)?;
    probe(storage_path, &run_dir)?;
    std::path::absolute(&run_dir).map_err(not_writable)
}

/// Proves that `folder`, which is in `storage_path` or above it, can be written to.
///
/// # Errors
/// [`ExperimentError::NotWritable`].
pub fn probe(storage_path: &Path, folder: &Path) -> Result<(), ExperimentError> {
    // Permissions do not tell (root, read-only mounts, quotas): writing does.
    // Without a name, so that a process which is killed here leaves nothing.
    tempfile::tempfile_in(folder)
        .and_then(|mut probe| io::Write::write_all(&mut probe, b"probe"))
        .map_err(|source| ExperimentError::NotWritable {
            storage_path: storage_path.to_owned(),
            source,
        })
}

fn name_at(entry_point: &str, time: Timestamp, random: u64) -> String {
    const SYMBOLS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let suffix: String = (0..4)
        .map(|place| char::from(SYMBOLS[(random >> (5 * place)) as usize & 31]))
        .collect();
    let time = time.strftime("%Y-%m-%d_%H-%M-%S");
    format!("{entry_point}_{time}_{suffix}")
}

#[cfg(test)]
mod tests {
    use super::{create_run_dir, generated_name, name_at, validate_name};
    use std::path::Path;

    #[test]
    fn generated_names_tell_program_time_and_are_valid() {
        let time = "2026-11-24T10:30:05.9Z".parse().unwrap();
        assert_eq!(
            name_at("train_fsdp", time, 0),
            "train_fsdp_2026-11-24_10-30-05_aaaa"
        );
        let names: Vec<_> = (0..50).map(|_| generated_name("train_deepspeed")).collect();
        for name in &names {
            validate_name(name).unwrap();
        }
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        // 50 of about a million suffixes: more than a few equal ones would mean that they are not random.
        assert!(distinct.len() > 45, "{} of 50 differ", distinct.len());
    }

    #[test]
    fn names_that_are_no_folder_are_refused() {
        for good in ["a", "qwen2-run_1", "läufe 3", "..."] {
            validate_name(good).unwrap();
        }
        let long = "x".repeat(201);
        for bad in [
            "", ".", "..", "a/b", "/", "a\\b", "a\nb", "a\0", " a", "a ", &long,
        ] {
            let message = validate_name(bad).expect_err(bad).to_string();
            assert!(message.contains("--experiment_name"), "{message}");
        }
    }

    #[test]
    fn the_folder_is_made_and_an_existing_one_is_taken() {
        let storage = tempfile::tempdir().unwrap();
        let path = storage.path().join("deep/er");
        let run_dir = create_run_dir(&path, "one").unwrap();
        assert!(run_dir.is_absolute() && run_dir.is_dir());
        assert_eq!(create_run_dir(&path, "one").unwrap(), run_dir);
        assert_eq!(
            std::fs::read_dir(run_dir).unwrap().count(),
            0,
            "the probe is gone"
        );
    }

    #[test]
    fn a_storage_path_that_cannot_be_written_says_what_to_pass() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // /proc refuses everybody, root included; a file is no folder.
        for path in [Path::new("/proc/none"), file.path()] {
            let message = create_run_dir(path, "one")
                .expect_err("an error")
                .to_string();
            assert!(message.contains("--storage_path ./runs"), "{message}");
            assert!(message.contains(&path.display().to_string()), "{message}");
        }
    }
}
