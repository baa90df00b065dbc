//! The same documents in every kind of file that holds them, and what is said of files that are left out or refused.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use tandem_data::{DatasetOptions, Hub, Source, SourceError};
use tempfile::TempDir;

const DOCUMENTS: [&str; 3] = ["one \u{e9}, and", "two \"quoted\"\nlines", "three"];

fn options(path: &Path) -> DatasetOptions {
    DatasetOptions::new(path.to_str().unwrap())
}

fn resolved(options: &DatasetOptions) -> Result<Source, SourceError> {
    Source::resolve(options, &Hub::from_env().unwrap(), &mut ())
}

fn read(options: &DatasetOptions) -> Result<Vec<String>, SourceError> {
    resolved(options)?.documents()?.collect()
}

#[track_caller]
fn refused(options: &DatasetOptions) -> String {
    let message = read(options).unwrap_err().to_string();
    println!("{message}");
    message
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 0).unwrap()
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn object(text: &str) -> String {
    format!(
        r#"{{"id": 7, "score": NaN, "worst": -Infinity, "text": {}, "note": "NaN \" Infinity"}}"#,
        serde_json::to_string(text).unwrap()
    )
}

fn json_lines() -> Vec<u8> {
    DOCUMENTS.map(|text| object(text) + "\n").concat().into()
}

fn array() -> Vec<u8> {
    format!("\n[\n  {}\n]\n", DOCUMENTS.map(object).join(",\n  ")).into()
}

/// As `json.dumps(.., indent=2)` writes them, one after the other.
fn pretty() -> Vec<u8> {
    let pretty = |text: &str| {
        let value = serde_json::json!({"text": text, "meta": {"text": [1, "}"], "of": {}}});
        serde_json::to_string_pretty(&value).unwrap() + "\n"
    };
    DOCUMENTS.map(pretty).concat().into()
}

fn csv(separator: &str) -> Vec<u8> {
    let rows = DOCUMENTS.map(|text| {
        let quoted = text.replace('"', "\"\"");
        format!("7{separator}\"{quoted}\"{separator}x\r\n")
    });
    format!("id{separator}text{separator}more\r\n{}", rows.concat()).into()
}

fn marked(content: Vec<u8>) -> Vec<u8> {
    [b"\xef\xbb\xbf".to_vec(), content].concat()
}

#[test]
fn the_same_documents_come_from_every_kind_of_file() {
    let halves = json_lines().len() / 2;
    let two_members = [gzip(&json_lines()[..halves]), gzip(&json_lines()[halves..])].concat();
    let two_frames = [zstd(&json_lines()[..halves]), zstd(&json_lines()[halves..])].concat();
    for (name, content) in [
        ("a.jsonl", json_lines()),
        ("A.JSONL", json_lines()),
        ("a.ndjson", json_lines()),
        ("lines.json", json_lines()),
        ("array.json", array()),
        ("array.jsonl", array()),
        ("pretty.json", pretty()),
        ("a.csv", csv(",")),
        ("a.tsv", csv("\t")),
        ("a.jsonl.gz", gzip(&json_lines())),
        ("a.json.gz", gzip(&array())),
        ("a.jsonl.zst", zstd(&json_lines())),
        ("members.jsonl.gz", two_members),
        ("frames.jsonl.zst", two_frames),
        ("a.csv.gz", gzip(&csv(","))),
        ("marked.json", marked(array())),
        ("marked.jsonl", marked(json_lines())),
        ("marked.csv", marked(csv(","))),
        ("marked.jsonl.gz", gzip(&marked(json_lines()))),
    ] {
        let dir = folder(&[(name, &content)]);
        let file = options(&dir.path().join(name));
        assert_eq!(read(&file).unwrap(), DOCUMENTS, "{name}");
        assert_eq!(read(&options(dir.path())).unwrap(), DOCUMENTS, "{name}");
        let share = DatasetOptions {
            percentage: 67.0,
            ..file
        };
        assert_eq!(read(&share).unwrap(), DOCUMENTS[..2], "{name}");
    }
    for content in [
        marked(b"one\ntwo\n".into()),
        gzip(b"one\r\ntwo"),
        zstd(b"one\ntwo\n"),
    ] {
        let name = match content[0] {
            0x1f => "a.txt.gz",
            0x28 => "a.TXT.ZST",
            _ => "a.txt",
        };
        let dir = folder(&[(name, &content)]);
        assert_eq!(
            read(&options(&dir.path().join(name))).unwrap(),
            ["one", "two"]
        );
    }
}

#[test]
fn nulls_and_missing_fields_are_empty_documents() {
    let dir = folder(&[
        ("a.csv", b"id,text\n1,one\n2,\n3\n4,NaN\n"),
        ("a.json", br#"[{"text": "one"}, {"text": null}]"#),
        ("none.json", b" [ ] \n"),
    ]);
    let file = |name: &str| options(&dir.path().join(name));
    assert_eq!(read(&file("a.csv")).unwrap(), ["one", "", "", "NaN"]);
    assert_eq!(read(&file("a.json")).unwrap(), ["one", ""]);
    assert_eq!(read(&file("none.json")).unwrap(), [""; 0]);
}

#[test]
fn broken_files_are_refused_with_their_line() {
    let good = br#"{"text": "one"}"#;
    let long = "x".repeat(1 << 22);
    let cut = |mut packed: Vec<u8>| {
        packed.truncate(packed.len() - 9);
        packed
    };
    for (name, content, expected) in [
        (
            "a.json",
            b"[{\"text\": \"one\"}\n,\n".to_vec(),
            "line 3: not a JSON object: the file ends",
        ),
        (
            "a.json",
            b"[{\"text\": \"one\"}\n,\n]".to_vec(),
            "line 3: not a JSON object: expected a value",
        ),
        (
            "a.json",
            b"[{\"text\": \"one\"} {}]".to_vec(),
            "expected `,` or `]`",
        ),
        (
            "a.json",
            b"[{\"text\": \"one\"}]\n{}".to_vec(),
            "line 2: not a JSON object: something follows",
        ),
        (
            "a.json",
            b"[\n\"one\"\n]".to_vec(),
            "line 2: not a JSON object",
        ),
        (
            "a.json",
            b"[\n{\"text\": [\"one\"]}]".to_vec(),
            "line 2: column `text` holds a list",
        ),
        (
            "a.json",
            b"{\n\"text\": NaN\n}".to_vec(),
            "line 1: column `text` holds a number",
        ),
        (
            "a.json",
            b"{\n\"text\": \"on\ne\"\n}".to_vec(),
            "line 3: not a JSON object: control",
        ),
        (
            "a.json",
            b"{\n\"text\": \"one\"\n".to_vec(),
            "not a JSON object: EOF",
        ),
        (
            "a.json",
            b"\n{\n\"body\": 1}".to_vec(),
            "line 2 has no column `text`: it has body",
        ),
        (
            "a.jsonl",
            [good, &b"\n\xff"[..]].concat(),
            "line 2: not UTF-8",
        ),
        (
            "a.csv",
            b"text,id\none,1\ntwo,2,3\n".to_vec(),
            "line 3: not a valid record: 3 fields, but the header has 2",
        ),
        (
            "a.csv",
            b"text,id\none,1\n\"two,2\nthree,3\n".to_vec(),
            "line 3: not a valid record: a quote",
        ),
        (
            "a.csv",
            b"body,id\none,1\n".to_vec(),
            "has no column `text`: it has body, id",
        ),
        (
            "a.csv",
            b"text\none\nt\xffo\n".to_vec(),
            "line 3: not UTF-8",
        ),
        (
            "a.jsonl.gz",
            json_lines(),
            "a.jsonl.gz: invalid gzip header",
        ),
        ("a.jsonl.zst", json_lines(), "a.jsonl.zst: Unknown frame"),
        ("a.txt.gz", cut(gzip(long.as_bytes())), "cannot read"),
        ("a.txt.zst", cut(zstd(long.as_bytes())), "cannot read"),
    ] {
        let dir = folder(&[(name, &content)]);
        let message = refused(&options(&dir.path().join(name)));
        assert!(
            message.contains(expected),
            "{name}: {message}, not {expected}"
        );
    }
}

#[test]
fn what_is_left_out_of_a_folder_is_said() {
    let dir = folder(&[
        ("a.jsonl", &json_lines()),
        ("b.jsonl.gz", &gzip(&json_lines())),
        ("LICENSE.txt", b"Permission is granted\n"),
        ("README.md", b"# About"),
        ("dataset_infos.json", b"{}"),
        ("__pycache__/c.jsonl", &json_lines()),
    ]);
    let source = resolved(&options(dir.path())).unwrap();
    assert_eq!(source.files().len(), 2);
    assert_eq!(
        source.left_out().unwrap(),
        "2 of other kinds (README.md, __pycache__/c.jsonl), 1 about the dataset (dataset_infos.json), \
         1 text beside other data (LICENSE.txt)"
    );
    assert_eq!(
        read(&options(dir.path())).unwrap(),
        [DOCUMENTS, DOCUMENTS].concat()
    );
    let alone = resolved(&options(&dir.path().join("a.jsonl"))).unwrap();
    assert_eq!(alone.left_out(), None);
}

#[test]
fn folders_below_the_dataset_are_read() {
    let dates = folder(&[
        ("year=2024/part-0.jsonl", br#"{"text": "a"}"#),
        ("year=2025/part-0.jsonl", br#"{"text": "b"}"#),
    ]);
    assert_eq!(read(&options(dates.path())).unwrap(), ["a", "b"]);
    let topics = folder(&[
        ("books/b.jsonl", br#"{"text": "b"}"#),
        ("wiki/deep/a.jsonl", br#"{"text": "a"}"#),
    ]);
    let message = refused(&options(topics.path()));
    assert!(
        message.contains("choose one of books, wiki/deep with dataset_config, or `all`"),
        "{message}"
    );
    let all = DatasetOptions {
        config: Some("all".into()),
        ..options(topics.path())
    };
    assert_eq!(read(&all).unwrap(), ["b", "a"]);
}

#[test]
fn lists_and_patterns_name_files() {
    let dir = folder(&[
        ("a.jsonl", br#"{"text": "a"}"#),
        ("more/b.jsonl", br#"{"text": "b"}"#),
        ("more/c.jsonl.gz", &gzip(br#"{"text": "c"}"#)),
        ("more/README.md", b"# About"),
        ("odd[1],2.jsonl", br#"{"text": "odd"}"#),
    ]);
    let at = |names: &[&str]| {
        let paths = names
            .iter()
            .map(|name| dir.path().join(name).to_str().unwrap().to_owned());
        DatasetOptions::new(paths.collect::<Vec<_>>().join(","))
    };
    assert_eq!(read(&at(&["more/*.jsonl*"])).unwrap(), ["b", "c"]);
    assert_eq!(read(&at(&["**/[ab].jsonl"])).unwrap(), ["a", "b"]);
    assert_eq!(
        read(&at(&["more/b.jsonl", "a.jsonl", "more/?.jsonl"])).unwrap(),
        ["b", "a"],
        "in the order of the list, each once"
    );
    assert_eq!(
        read(&at(&["odd[1],2.jsonl"])).unwrap(),
        ["odd"],
        "a file of that name"
    );
    let source = resolved(&at(&["more/*"])).unwrap();
    assert!(source.left_out().unwrap().ends_with("README.md)"));
    for (names, expected) in [
        (&["a.jsonl", "missing.jsonl"][..], "there is no file"),
        (&["more/*.csv"], "no file matches"),
        (&["a.jsonl", "more/README.md"], "README.md is neither .txt"),
        (&["a.jsonl", "more"], "more is a folder"),
        (&["more/[.jsonl"], "is no pattern"),
    ] {
        let message = refused(&at(names));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn links_are_read_once() {
    let dir = folder(&[("a/one.txt", b"one"), (".store/two.txt", b"two")]);
    let outside = folder(&[("three.txt", b"three")]);
    let at = |name: &str| dir.path().join(name);
    symlink("..", at("a/up")).unwrap();
    symlink("a", at("b")).unwrap();
    symlink("one.txt", at("a/again.txt")).unwrap();
    symlink(at(".store/two.txt"), at("a/two.txt")).unwrap();
    symlink(dir.path(), outside.path().join("back")).unwrap();
    symlink(outside.path(), at("a/z")).unwrap();
    let all = DatasetOptions {
        config: Some("all".into()),
        ..options(dir.path())
    };
    assert_eq!(read(&all).unwrap(), ["one", "two", "three"]);
    assert_eq!(
        resolved(&all).unwrap().left_out().unwrap(),
        "4 links to what is read anyway (a/again.txt, a/up, a/z/back, ...)"
    );
}

#[test]
fn only_regular_files_are_opened() {
    let dir = folder(&[("a.txt", b"one")]);
    let at = |name: &str| dir.path().join(name);
    let pipe: PathBuf = at("pipe.jsonl");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let _socket = UnixListener::bind(at("socket.jsonl")).unwrap();
    symlink("/dev/null", at("device.jsonl")).unwrap();
    for (name, found) in [
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("device", "a device"),
    ] {
        let message = refused(&options(&at(&format!("{name}.jsonl"))));
        assert!(
            message.contains(&format!("{name}.jsonl is {found}")),
            "{message}"
        );
    }
    // Whoever opened it would wait for ever.
    assert!(refused(&options(dir.path())).contains("must be regular files"));
    let pattern = DatasetOptions::new(at("pi*.jsonl").to_str().unwrap());
    assert!(refused(&pattern).contains("is a pipe"));
}

#[test]
fn flags_that_files_cannot_honour_are_refused() {
    let dir = folder(&[
        ("a.txt", b"one"),
        ("valid.txt", b"two"),
        ("b.jsonl", &json_lines()),
    ]);
    let at = |name: &str| options(&dir.path().join(name));
    let body = |options: DatasetOptions| DatasetOptions {
        text_column: "body".into(),
        ..options
    };
    let split = |options: DatasetOptions| DatasetOptions {
        split: "validation".into(),
        ..options
    };
    let message = refused(&body(at("a.txt")));
    assert!(
        message.contains("text_column is `body`") && message.contains("leave"),
        "{message}"
    );
    let message = refused(&split(at("b.jsonl")));
    assert!(
        message.contains("dataset_split is `validation`") && message.contains("leave"),
        "{message}"
    );
    assert_eq!(
        read(&split(at("valid.txt"))).unwrap(),
        ["two"],
        "that is what it is"
    );
}
