//! Documents from every kind of file, and what is said of files that have none.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod parquet_file;

use std::fs;
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet_file::{with_nulls, without_nulls};
use tandem_data::{DatasetOptions, Format, Hub, Source, SourceError};
use tempfile::TempDir;

fn options(path: &Path) -> DatasetOptions {
    DatasetOptions::new(path.to_str().unwrap())
}

fn read(options: &DatasetOptions) -> Result<Vec<String>, SourceError> {
    let source = Source::resolve(options, &Hub::from_env().unwrap(), &mut ())?;
    source.documents()?.collect()
}

#[track_caller]
fn refused(options: &DatasetOptions) -> String {
    let message = read(options).unwrap_err().to_string();
    println!("{message}");
    message
}

fn file(content: &[u8], name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn compressed(compression: Compression) -> WriterPropertiesBuilder {
    WriterProperties::builder().set_compression(compression)
}

/// A parquet file with these texts.
fn parquet<T: AsRef<[u8]>>(texts: &[T]) -> (TempDir, PathBuf) {
    let properties = compressed(Compression::SNAPPY).build();
    file(&without_nulls(texts, properties), "data.parquet")
}

fn sentences(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("This is sentence {n}."))
        .collect()
}

#[test]
fn a_line_of_text_is_a_document() {
    let (_dir, path) = file("one\n\ntwo \u{e9}\r\nthree".as_bytes(), "a.txt");
    assert_eq!(
        read(&options(&path)).unwrap(),
        ["one", "", "two \u{e9}", "three"]
    );
}

#[test]
fn text_of_another_encoding_is_refused_with_its_line() {
    let (_dir, path) = file(b"one\ntwo\nthr\xe9\xe9\n", "a.txt");
    assert!(refused(&options(&path)).contains("a.txt, line 3: not UTF-8"));
}

#[test]
fn a_line_of_json_is_a_document() {
    let lines = r#"{"id": 1, "text": "one \u00e9"}

{"text": null, "meta": {"text": "not this"}}
{"text": "three"}"#;
    let (_dir, path) = file(lines.as_bytes(), "a.jsonl");
    assert_eq!(read(&options(&path)).unwrap(), ["one \u{e9}", "", "three"]);
    let other = DatasetOptions {
        text_column: "body".into(),
        ..options(&path)
    };
    let message = refused(&other);
    assert!(
        message.contains("line 1 has no column `body`: it has id, text"),
        "{message}"
    );
}

#[test]
fn broken_json_is_refused_with_its_line() {
    for (line, expected) in [
        (r#"{"text": "tw"#, "line 2: not a JSON object"),
        (r#"{"text": "two"} {}"#, "line 2: not a JSON object"),
        (r#"["two"]"#, "line 2: not a JSON object"),
        (r#"{"text": 2}"#, "line 2: column `text` holds a number"),
        ("{}", "line 2 has no column `text`: it has no columns"),
    ] {
        let content = format!("{{\"text\": \"one\"}}\n{line}\n");
        let (_dir, path) = file(content.as_bytes(), "a.jsonl");
        let message = refused(&options(&path));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_row_of_parquet_is_a_document() {
    // A null now and then, some texts more than once, and one that is longer than a page.
    let mut texts = sentences(3000);
    texts[7] = "long ".repeat(1 << 18);
    texts[8] = "caf\u{e9} \u{1f980}".into();
    texts[2000..].fill("the same".into());
    let nullable: Vec<Option<&[u8]>> = texts
        .iter()
        .enumerate()
        .map(|(row, text)| (row % 5 != 4).then_some(text.as_bytes()))
        .collect();
    let expected: Vec<&str> = texts
        .iter()
        .zip(&nullable)
        .map(|(text, value)| value.map_or("", |_| text))
        .collect();
    let compressions = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
        Compression::GZIP(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ];
    // Without an encoding, the values are in a dictionary as long as it is small.
    let encodings = [
        None,
        Some(Encoding::PLAIN),
        Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        Some(Encoding::DELTA_BYTE_ARRAY),
    ];
    for compression in compressions {
        for encoding in encodings {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let mut properties = compressed(compression)
                    .set_writer_version(version)
                    .set_data_page_row_count_limit(30)
                    .set_write_batch_size(10);
                if let Some(encoding) = encoding {
                    properties = properties
                        .set_dictionary_enabled(false)
                        .set_column_encoding("text".into(), encoding);
                }
                let properties = properties.build();
                let what = format!("{compression}, {encoding:?}, {version:?}");
                let (_dir, path) = file(&without_nulls(&texts, properties.clone()), "a.parquet");
                assert!(read(&options(&path)).unwrap() == texts, "{what}");
                let (_dir, path) = file(&with_nulls(&nullable, properties), "a.parquet");
                assert!(read(&options(&path)).unwrap() == expected, "{what}");
            }
        }
    }
}

/// The file that pyarrow wrote: see `tests-data/parquet/README.md`.
fn arrow_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/parquet/arrow.parquet")
}

#[test]
fn every_form_of_text_that_arrow_knows_is_read() {
    let column = |name: &str| DatasetOptions {
        text_column: name.into(),
        ..options(&arrow_file())
    };
    for name in ["plain", "large", "view", "dictionary", "last"] {
        let expected: Vec<String> = (0..6)
            .map(|row| match row {
                2 if name != "last" => String::new(),
                _ => format!("{name} {row}"),
            })
            .collect();
        assert_eq!(read(&column(name)).unwrap(), expected);
    }
    for (name, kind) in [
        ("binary", "Binary"),
        ("time", "Int64 (Timestamp)"),
        ("list", "List"),
        ("struct", "Struct"),
    ] {
        let message = refused(&column(name));
        let expected = format!("column `{name}` holds {kind}, not text");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn a_page_that_differs_from_its_checksum_is_refused() {
    let good = fs::read(arrow_file()).unwrap();
    // One letter of a text: nothing but the checksum can tell. The first row group is read before it.
    let place = good.windows(7).position(|bytes| bytes == b"plain 5");
    let (_dir, path) = file(&good, "data.parquet");
    let plain = DatasetOptions {
        text_column: "plain".into(),
        ..options(&path)
    };
    assert_eq!(read(&plain).unwrap().len(), 6);
    let mut bad = good;
    bad[place.unwrap()] ^= 1;
    fs::write(&path, &bad).unwrap();
    let message = refused(&plain);
    assert!(
        message.contains("data.parquet is not a valid parquet file (after row 4)")
            && message.contains("CRC"),
        "{message}"
    );
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let mut texts: Vec<Vec<u8>> = sentences(250).into_iter().map(String::into_bytes).collect();
    texts[240][3] = 0xff;
    let (_dir, path) = parquet(&texts);
    let message = refused(&options(&path));
    assert!(
        message.contains("(after row 200)") && message.contains("utf-8"),
        "{message}"
    );
}

#[test]
fn parquet_without_the_column_says_what_there_is() {
    let (_dir, path) = parquet(&sentences(3));
    let column = |name: &str| DatasetOptions {
        text_column: name.into(),
        ..options(&path)
    };
    let message = refused(&column("body"));
    assert!(
        message.contains("no column `body`: it has number, text"),
        "{message}"
    );
    let message = refused(&column("number"));
    assert!(
        message.contains("column `number` holds Int64, not text"),
        "{message}"
    );
}

#[test]
fn corrupt_parquet_is_refused_and_never_worse() {
    let (_dir, path) = parquet(&sentences(250));
    let good = fs::read(&path).unwrap();
    for length in [0, 3, 10, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        let message = refused(&options(&path));
        assert!(message.contains("is not a valid parquet file"), "{message}");
    }
    // A flipped byte may be in a part that is not read, or change a letter: but it is never a crash.
    let (mut read_fine, mut named) = (0, 0);
    for index in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[index] ^= 0x55;
        fs::write(&path, &bad).unwrap();
        match read(&options(&path)) {
            Ok(_) => read_fine += 1,
            Err(error) => {
                assert!(error.to_string().contains("data.parquet"), "{error}");
                named += 1;
            }
        }
    }
    println!(
        "of {} bytes, {named} flipped bytes noticed, {read_fine} not",
        good.len()
    );
    assert!(named > read_fine / 4);
}

#[test]
fn a_folder_is_read_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("README.md", "# About"),
        ("b-train.txt", "three"),
        ("a-train.txt", "one\ntwo\n"),
        ("test.txt", "other"),
        (".hidden-train.txt", "hidden"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    assert_eq!(read(&options(dir.path())).unwrap(), ["one", "two", "three"]);
    let test = DatasetOptions {
        split: "test".into(),
        ..options(dir.path())
    };
    assert_eq!(read(&test).unwrap(), ["other"]);
    let missing = DatasetOptions {
        split: "validation".into(),
        ..options(dir.path())
    };
    assert!(refused(&missing).contains("its splits are test, train"));
}

#[test]
fn a_configuration_is_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    for config in ["small", "large"] {
        fs::create_dir_all(dir.path().join(config).join("train")).unwrap();
        fs::write(dir.path().join(config).join("train/0.txt"), config).unwrap();
    }
    let small = DatasetOptions {
        config: Some("small".into()),
        ..options(dir.path())
    };
    assert_eq!(read(&small).unwrap(), ["small"]);
    let message = refused(&options(dir.path()));
    assert!(
        message.contains("choose one of large, small with dataset_config"),
        "{message}"
    );
    let file = DatasetOptions {
        name: dir
            .path()
            .join("small/train/0.txt")
            .to_str()
            .unwrap()
            .into(),
        ..small
    };
    assert!(refused(&file).contains("leave dataset_config out"));
}

#[test]
fn a_share_is_the_first_documents() {
    let (_text, text) = file(sentences(10).join("\n").as_bytes(), "a.txt");
    let json: Vec<String> = sentences(10)
        .iter()
        .map(|s| format!("{{\"text\": \"{s}\"}}\n"))
        .collect();
    let (_json, json) = file(json.concat().as_bytes(), "a.jsonl");
    let (_parquet, parquet) = parquet(&sentences(10));
    for (path, format) in [
        (&text, Format::Text),
        (&json, Format::JsonLines),
        (&parquet, Format::Parquet),
    ] {
        for (percentage, count) in [(100.0, 10), (34.0, 3), (36.0, 4), (10.0, 1)] {
            let share = DatasetOptions {
                percentage,
                ..options(path)
            };
            let found = read(&share).unwrap();
            assert_eq!(found, sentences(count), "{percentage} % of {format:?}");
        }
        let little = DatasetOptions {
            percentage: 4.0,
            ..options(path)
        };
        assert!(
            refused(&little).contains("4 of the 10 documents"),
            "{format:?}"
        );
    }
    for percentage in [0.0, -1.0, 100.5, f64::NAN] {
        let nonsense = DatasetOptions {
            percentage,
            ..options(&text)
        };
        assert!(refused(&nonsense).contains("must be above 0 and at most 100"));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(&options(dir.path())).contains("it has no files"));
    let message = refused(&options(&dir.path().join("missing.txt")));
    assert!(
        message.contains("missing.txt`: no such file or folder"),
        "{message}"
    );
    let (_dir, xml) = file(b"<a/>\n", "a.xml");
    assert!(refused(&options(&xml)).contains("neither .txt, .jsonl nor .parquet"));
}
