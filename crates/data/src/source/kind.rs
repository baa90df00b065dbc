//! What a file is, told by its name.

/// Kinds of files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A document a line.
    Text,
    /// JSON objects: one a line, one after the other, or in an array.
    JsonLines,
    /// A document a row, after a header.
    Csv,
    /// A document a row.
    Parquet,
}

/// What a file is packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
}

/// A format, and how it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) format: Format,
    pub(crate) compression: Option<Compression>,
    /// Columns of a .tsv file are parted by tabs, those of a .csv file by commas.
    pub(crate) has_tabs: bool,
}

/// The endings that are read, for messages.
pub(super) const ENDINGS: &str =
    ".txt, .jsonl, .ndjson, .json, .csv, .tsv (also with .gz or .zst after it) or .parquet";

impl Format {
    /// The kind that a file's name tells.
    pub fn of(name: &str) -> Option<Self> {
        Kind::of(name).map(|kind| kind.format)
    }
}

impl Kind {
    /// The kind that a file's name tells, in capitals or not.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (rest, compression) = uncompressed(name);
        let ending = rest.rsplit_once('.')?.1.to_ascii_lowercase();
        let format = match ending.as_str() {
            "txt" => Format::Text,
            "jsonl" | "ndjson" | "json" => Format::JsonLines,
            "csv" | "tsv" => Format::Csv,
            // It is compressed inside.
            "parquet" if compression.is_none() => Format::Parquet,
            _ => return None,
        };
        Some(Self {
            format,
            compression,
            has_tabs: ending == "tsv",
        })
    }
}

/// A file's name without folders and without the endings that tell its kind.
pub(super) fn bare(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    let rest = uncompressed(file).0;
    rest.rsplit_once('.').map_or(rest, |(bare, _)| bare)
}

fn uncompressed(name: &str) -> (&str, Option<Compression>) {
    let endings = [
        (".gz", Compression::Gzip),
        (".zst", Compression::Zstd),
        (".zstd", Compression::Zstd),
    ];
    for (ending, compression) in endings {
        let start = name.len().saturating_sub(ending.len());
        if name.is_char_boundary(start) && name[start..].eq_ignore_ascii_case(ending) {
            return (&name[..start], Some(compression));
        }
    }
    (name, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_tell_kinds() {
        let kind = |format, compression| {
            Some(Kind {
                format,
                compression,
                has_tabs: false,
            })
        };
        for (name, expected) in [
            ("a.txt", kind(Format::Text, None)),
            ("A.TXT.GZ", kind(Format::Text, Some(Compression::Gzip))),
            ("a/b.c.json", kind(Format::JsonLines, None)),
            ("a.NDJSON", kind(Format::JsonLines, None)),
            (
                "a.jsonl.zst",
                kind(Format::JsonLines, Some(Compression::Zstd)),
            ),
            ("a.csv", kind(Format::Csv, None)),
            ("a.Parquet", kind(Format::Parquet, None)),
            ("a.parquet.gz", None),
            ("a.gz", None),
            ("txt", None),
            ("caf\u{e9}", None),
            ("README.md", None),
        ] {
            assert_eq!(Kind::of(name), expected, "{name}");
        }
        assert!(Kind::of("a.tsv").unwrap().has_tabs);
        for (name, expected) in [
            ("b/train.jsonl.gz", "train"),
            ("v1.2.TXT", "v1.2"),
            ("plain", "plain"),
        ] {
            assert_eq!(bare(name), expected);
        }
    }
}
