//! The list of files that set-up unpacked, kept beside them, so that a later run can tell whether all are still whole.
//!
//! One line per file: CRC-32 in hexadecimal, size in bytes, path. A CRC and not a cryptographic hash because the
//! question is whether a disk or an interrupted command damaged the files; pip has checked where they came from.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Its name in the directory that it describes.
const FILE_NAME: &str = "tandem-manifest.txt";

/// One unpacked file.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub path: String,
    pub size: u64,
    pub crc32: u32,
}

/// Writes the manifest of `directory`.
pub fn write(directory: &Path, entries: &[Entry]) -> Result<()> {
    let mut text = String::new();
    for Entry { path, size, crc32 } in entries {
        writeln!(text, "{crc32:08x} {size} {path}")?;
    }
    let path = directory.join(FILE_NAME);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether `directory` came from set-up, and so has a manifest to hold it against.
pub fn exists(directory: &Path) -> bool {
    directory.join(FILE_NAME).exists()
}

/// Reads every file of the manifest and errors at the first that is missing or changed.
pub fn verify(directory: &Path) -> Result<()> {
    let text = fs::read_to_string(directory.join(FILE_NAME))?;
    if text.is_empty() {
        bail!("its manifest is empty");
    }
    for line in text.lines() {
        let expected =
            parse(line).with_context(|| format!("its manifest has the line {line:?}"))?;
        let found = entry_of(directory, &expected.path)?;
        if found != expected {
            bail!(
                "{} has changed ({} bytes with CRC {:08x}, expected {} bytes with CRC {:08x})",
                expected.path,
                found.size,
                found.crc32,
                expected.size,
                expected.crc32
            );
        }
    }
    Ok(())
}

/// Describes the file `path` of `directory` as it is now.
fn entry_of(directory: &Path, path: &str) -> Result<Entry> {
    let mut file =
        fs::File::open(directory.join(path)).with_context(|| format!("{path} is missing"))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut size = 0;
    let mut chunk = vec![0; 1 << 18];
    loop {
        let n = file
            .read(&mut chunk)
            .with_context(|| format!("{path} cannot be read"))?;
        if n == 0 {
            break;
        }
        hasher.update(&chunk[..n]);
        size += n as u64;
    }
    Ok(Entry {
        path: path.to_owned(),
        size,
        crc32: hasher.finalize(),
    })
}

fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.splitn(3, ' ');
    let crc32 = u32::from_str_radix(fields.next()?, 16).ok()?;
    let size = fields.next()?.parse().ok()?;
    let path = fields.next()?.to_owned();
    Some(Entry { path, size, crc32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_a_shortened_and_a_missing_file_are_noticed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("a file");
        fs::write(&file, "content").expect("write");
        let entry = entry_of(directory.path(), "a file").expect("describe");
        write(directory.path(), &[entry]).expect("write manifest");
        verify(directory.path()).expect("nothing changed yet");

        let complaint = || format!("{:#}", verify(directory.path()).expect_err("damaged"));
        fs::write(&file, "c0ntent").expect("write");
        assert!(
            complaint().contains("a file has changed"),
            "{}",
            complaint()
        );
        fs::write(&file, "con").expect("write");
        assert!(complaint().contains("3 bytes"), "{}", complaint());
        fs::remove_file(&file).expect("remove");
        assert!(complaint().contains("a file is missing"), "{}", complaint());
    }
}
