//! Small files that unpack to gigabytes, and values that never end: refused, with the little memory that a document may take.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use tandem_data::hub::Settings;
use tandem_data::{DatasetOptions, Hub, Source};

/// Unpacked bytes of the part that is repeated.
const PART: usize = 16 << 20;

/// 4 GiB, of which a reader sees as much as it may.
const ENDLESS: usize = 256;

/// What a document may just have.
const LARGE: usize = 15;

/// What reading may take: a document has 256 MiB, its buffer grows, and a parser has a copy.
const MEMORY_KIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy)]
enum Packing {
    Gzip,
    Zstd,
}

/// Packed bytes. Both formats are made of parts, so that what is long is a few kilobytes many times.
fn packed(packing: Packing, begin: &str, (filler, times): (&str, usize), end: &str) -> Vec<u8> {
    let part = |text: &[u8]| match packing {
        Packing::Gzip => {
            let mut packer = GzBuilder::new().write(Vec::new(), Compression::best());
            packer.write_all(text).unwrap();
            packer.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(text, 1).unwrap(),
    };
    let filler = part(filler.repeat(PART / filler.len()).as_bytes());
    [
        part(begin.as_bytes()),
        filler.repeat(times),
        part(end.as_bytes()),
    ]
    .concat()
}

/// The most memory that this process had so far.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// The error of reading all documents of a file.
fn refused(path: &Path) -> String {
    let hub = Hub::new(Settings::from_variables(|_| None).unwrap());
    let read = || {
        let source = Source::resolve(&DatasetOptions::new(path.to_str().unwrap()), &hub, &mut ())?;
        source
            .documents()?
            .try_for_each(|document| document.map(drop))
    };
    read().unwrap_err().to_string()
}

#[test]
fn what_unpacks_to_gigabytes_is_refused_early_and_in_little_memory() {
    let (long, fields) = ("more than 256 MiB", "more than 1000000 fields");
    let cases = [
        ("txt", "", ("a", ENDLESS), "", long),
        ("jsonl", "{\"text\": \"", ("a", ENDLESS), "", long),
        (
            "jsonl",
            "{\"text\": \"x\"}\n{\"text\": \"",
            ("a", ENDLESS),
            "",
            long,
        ),
        (
            "json",
            "[{\"text\": \"x\"}, {\"text\": \"",
            ("a", ENDLESS),
            "",
            long,
        ),
        ("json", "[{\"text\": \"x\"}, ", ("{", ENDLESS), "", long),
        (
            "json",
            "{\n\"text\": \"x\", \"other\": [",
            ("1,\n", ENDLESS),
            "",
            long,
        ),
        // What takes many times as much when it is parsed.
        ("jsonl", "{\"text\": [0", (",0", LARGE), "]}", "a list"),
        (
            "jsonl",
            "{\"x\": 0",
            (",\"\":0", LARGE),
            "}",
            "no column `text`",
        ),
        // A field in quotes, one without, a row and a header without an end.
        ("csv", "id,text\n1,\"", ("a\n", ENDLESS), "", long),
        ("csv", "id,text\n1,", ("a", ENDLESS), "", long),
        ("csv", "id,text\n", (",", ENDLESS), "", fields),
        ("csv", "", ("a,", ENDLESS), "", fields),
        ("tsv", "text\n", ("a\t", ENDLESS), "", fields),
    ];
    let folder = tempfile::tempdir().unwrap();
    let packings = [(Packing::Gzip, "gz"), (Packing::Zstd, "zst")];
    for (case, (packing, ending)) in cases.into_iter().zip(packings.into_iter().cycle()) {
        let (kind, begin, filler, end, expected) = case;
        let path = folder.path().join(format!("data.{kind}.{ending}"));
        let bytes = packed(packing, begin, filler, end);
        assert!(bytes.len() < 32 << 20, "{} bytes", bytes.len());
        fs::write(&path, &bytes).unwrap();
        drop(bytes);
        let message = refused(&path);
        println!(
            "{kind}.{ending} {begin:?} {filler:?}: peak {} KiB: {message:.200}",
            peak_kib()
        );
        assert!(
            message.contains(expected),
            "{kind}.{ending} {begin:?}: {message:.500}"
        );
        assert!(message.len() < 1000, "{} bytes of words", message.len());
    }
    assert!(peak_kib() < MEMORY_KIB, "{} KiB", peak_kib());
}
