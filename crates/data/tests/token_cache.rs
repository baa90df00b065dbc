//! The token cache of a real text, from files to batches, and by several processes at once.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tandem_data::{
    BatchSource, CacheError, DatasetOptions, Encoder, EpochLimit, Hub, Loader, LoaderOptions,
    Position, Progress, RowLayout, Rows, Sampler, Share, Source, SourceError, Token, TokenCache,
    TokenDataset, Tokenizer, Verify,
};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/data/kjv.txt");
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model");

/// The first lines of the demo's text, so that a test takes a moment only.
fn some_text(dir: &Path) -> PathBuf {
    let path = dir.join("train.txt");
    let text = fs::read_to_string(TEXT).unwrap();
    let lines: Vec<&str> = text.lines().take(200).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn source(options: &DatasetOptions) -> Result<Source, SourceError> {
    Source::resolve(options, &Hub::from_env().unwrap(), &mut ())
}

fn source_of(path: &Path) -> Source {
    source(&DatasetOptions::new(path.to_str().unwrap())).unwrap()
}

fn encoder() -> Encoder {
    Encoder::of_text(tokenizer())
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(Path::new(TOKENIZER)).unwrap()
}

/// Counts how often something was tokenized.
#[derive(Default)]
struct Begins {
    count: usize,
    last: (u64, u64),
}

impl Progress for Begins {
    fn begin(&mut self, _what: &str) {
        self.count += 1;
        self.last = (0, 0);
    }

    fn update(&mut self, done_bytes: u64, total_bytes: u64) {
        assert!(done_bytes >= self.last.0 && done_bytes <= total_bytes);
        self.last = (done_bytes, total_bytes);
    }
}

fn files_of(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect()
}

#[test]
fn a_cache_holds_what_the_tokenizer_says() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let encoder = encoder();
    let mut begins = Begins::default();
    let cache =
        TokenCache::build_or_open(&source_of(&text), &encoder, dir.path(), &mut begins).unwrap();
    assert_eq!(begins.count, 1);
    let size = fs::metadata(&text).unwrap().len();
    assert_eq!(begins.last, (size, size), "progress reaches the end");

    let text = fs::read_to_string(&text).unwrap();
    let documents: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(cache.documents() as usize, documents.len());
    for (index, document) in documents.iter().enumerate() {
        let expected = encoder.encode(document).unwrap().tokens;
        let found: Vec<u32> = cache.document(index as u64).map(Token::id).collect();
        assert_eq!(found, expected, "document {index}");
    }
    println!("{} documents, {} tokens", cache.documents(), cache.tokens());
    let again = TokenCache::open(cache.path(), Verify::Header).unwrap();
    assert_eq!(again.key(), cache.key());
}

#[test]
fn one_cache_serves_every_layout_and_no_other_content() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let cache_dir = dir.path().join("deep/cache");
    let mut begins = Begins::default();
    let mut build = |options: &DatasetOptions, encoder: &Encoder| {
        let source = source(options).unwrap();
        TokenCache::build_or_open(&source, encoder, &cache_dir, &mut begins).unwrap();
        begins.count
    };
    let options = DatasetOptions::new(text.to_str().unwrap());
    assert_eq!(build(&options, &encoder()), 1);
    assert_eq!(build(&options, &encoder()), 1, "the same again");

    // The same content elsewhere is the same dataset.
    let copy = dir.path().join("copy.txt");
    fs::copy(&text, &copy).unwrap();
    assert_eq!(
        build(&DatasetOptions::new(copy.to_str().unwrap()), &encoder()),
        1
    );

    let half = DatasetOptions {
        percentage: 50.0,
        ..options.clone()
    };
    assert_eq!(build(&half, &encoder()), 2, "half of it");

    let other = dir.path().join("tokenizer");
    fs::create_dir(&other).unwrap();
    let json = fs::read_to_string(format!("{TOKENIZER}/tokenizer.json")).unwrap();
    fs::write(other.join("tokenizer.json"), json + "\n").unwrap();
    fs::write(other.join("config.json"), r#"{"eos_token_id": 0}"#).unwrap();
    let other = Tokenizer::load(&other).unwrap();
    assert_eq!(
        build(&options, &Encoder::of_text(other)),
        3,
        "another tokenizer file"
    );

    fs::write(&text, fs::read_to_string(&text).unwrap() + "\nAmen.").unwrap();
    assert_eq!(build(&options, &encoder()), 4, "a line more");
}

#[test]
fn a_damaged_cache_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let (source, encoder) = (source_of(&text), encoder());
    let mut begins = Begins::default();
    let mut build =
        || TokenCache::build_or_open(&source, &encoder, dir.path(), &mut begins).unwrap();
    let cache = build();
    let (path, good) = (cache.path().to_owned(), fs::read(cache.path()).unwrap());
    drop(cache);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&good[..good.len() - 1], &good[..50], &[], &flipped] {
        fs::write(&path, bad).unwrap();
        drop(build());
        assert!(fs::read(&path).unwrap() == good, "the same bytes again");
    }
    assert_eq!(begins.count, 5);
}

#[test]
fn a_whole_cache_of_other_data_is_not_taken_for_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let other = dir.path().join("other.txt");
    fs::write(&other, "Other words altogether.\n".repeat(50)).unwrap();
    let build = |text: &Path| {
        TokenCache::build_or_open(&source_of(text), &encoder(), dir.path(), &mut ()).unwrap()
    };
    let path = build(&text).path().to_owned();
    let good = fs::read(&path).unwrap();
    fs::copy(build(&other).path(), &path).unwrap();
    // A worker looks at the header only.
    let error = TokenCache::open(&path, Verify::Header).unwrap_err();
    assert!(error.to_string().contains("of other data"), "{error}");
    assert_eq!(build(&text).path(), path);
    assert!(fs::read(&path).unwrap() == good, "it is built again");
}

#[test]
fn datasets_without_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let build = |content: &str| {
        let path = dir.path().join("empty.txt");
        fs::write(&path, content).unwrap();
        let source = source_of(&path);
        let error = TokenCache::build_or_open(&source, &encoder(), dir.path(), &mut ());
        let error = error.unwrap_err();
        println!("{error}");
        assert!(matches!(error, CacheError::Empty { .. }), "{error}");
        assert!(
            files_of(dir.path(), ".tokens").is_empty(),
            "nothing is left"
        );
        assert!(files_of(dir.path(), ".tmp").is_empty(), "nothing is left");
        error.to_string()
    };
    assert!(build("").contains("none of its 0 documents"));
    assert!(build("\n\n\n").contains("none of its 3 documents"));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    // A file where a folder should be: even a superuser cannot write into it.
    let not_a_folder = text.join("cache");
    let error = TokenCache::build_or_open(&source_of(&text), &encoder(), &not_a_folder, &mut ());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("train.txt/cache"), "{message}");
}

#[test]
fn text_becomes_batches() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_of(Path::new(TEXT));
    let encoder = encoder();
    let cache = TokenCache::build_or_open(&source, &encoder, dir.path(), &mut ()).unwrap();
    let cache = Arc::new(cache);
    let mut stream = vec![0; cache.stream_len() as usize];
    let mut labels = stream.clone();
    cache.copy_stream(0, &mut stream, &mut labels);
    assert_eq!(labels, stream);
    println!("{} tokens joined", stream.len());

    let (seq, eos) = (128, i64::from(encoder.tokenizer().eos_id()));
    let dataset = Arc::new(TokenDataset::new(cache, seq, RowLayout::WRAPPED).unwrap());
    let share = Share {
        dp_rank: 1,
        dp_size: 2,
        batch_size: 3,
        micro_batches: 2,
    };
    let limit = EpochLimit {
        epochs: 1,
        steps_per_epoch: Some(5),
    };
    let sampler = Sampler::new(dataset.len(), 42, share.global_batch() as u64).unwrap();
    let sampler = sampler.limited(limit);
    let options = LoaderOptions {
        share,
        start: Position::default(),
    };
    let mut loader = Loader::new(dataset.clone(), sampler.clone(), options).unwrap();
    let mut steps = 0;
    while let Some(batches) = loader.next_step().unwrap() {
        assert_eq!(batches.len(), 2);
        for (index, batch) in batches.iter().enumerate() {
            let first = (6 + 3 * index) as u64;
            assert_eq!(batch.first_sample, 12 * steps + first);
            let start = Position {
                epoch: 0,
                sample: 12 * steps,
            };
            let samples = sampler.samples(start, first..first + 3);
            for (row, sample) in batch.input_ids.chunks(seq).zip(samples) {
                let begin = sample as usize * seq;
                assert_eq!(row, &stream[begin..begin + seq]);
            }
            assert_eq!(batch.labels, batch.input_ids);
            assert_eq!(batch.targets(), 3 * (seq - 1));
        }
        steps += 1;
    }
    assert_eq!(steps, 5);
    let documents = stream.iter().filter(|token| **token == eos).count();
    assert_eq!(documents, fs::read_to_string(TEXT).unwrap().lines().count());
}

fn start_rank(text: &Path, cache_dir: &Path, pause: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-fake-rank"));
    command.args([text, Path::new(TOKENIZER), cache_dir]);
    if pause {
        command.arg("pause");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a rank says at its end: the last line.
fn finish(mut rank: Child) -> String {
    let mut said = String::new();
    rank.stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(rank.wait().unwrap().success(), "{said}");
    said.lines().last().unwrap().to_owned()
}

#[test]
fn of_processes_that_start_together_one_builds() {
    let dir = tempfile::tempdir().unwrap();
    let cache_dir = dir.path().join("cache");
    let text = some_text(dir.path());
    let ranks: Vec<Child> = (0..4)
        .map(|_| start_rank(&text, &cache_dir, false))
        .collect();
    let said: Vec<String> = ranks.into_iter().map(finish).collect();
    println!("{said:#?}");
    let built = said.iter().filter(|line| line.starts_with("built")).count();
    assert_eq!(built, 1);
    let outcome = |line: &String| line.split_once(' ').unwrap().1.to_owned();
    assert!(said.iter().all(|line| outcome(line) == outcome(&said[0])));
    let caches = files_of(&cache_dir, ".tokens");
    assert_eq!(caches.len(), 1);
    assert!(files_of(&cache_dir, ".tmp").is_empty());
    TokenCache::open(&caches[0], Verify::Full).unwrap();
}

#[test]
fn a_process_waits_for_the_one_that_builds() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let mut first = start_rank(&text, dir.path(), true);
    let mut first_says = BufReader::new(first.stdout.take().unwrap());
    let mut line = String::new();
    first_says.read_line(&mut line).unwrap();
    assert_eq!(line, "tokenizing\n", "it holds the lock from here on");
    let second = start_rank(&text, dir.path(), false);
    // If it did not wait, it would begin to tokenize too in this time, and say so at its end.
    thread::sleep(Duration::from_millis(500));
    first.stdin.take().unwrap().write_all(b"\n").unwrap();
    line.clear();
    first_says.read_line(&mut line).unwrap();
    assert!(line.starts_with("built"), "{line}");
    assert!(first.wait().unwrap().success());
    let said = finish(second);
    assert!(said.starts_with("reused"), "{said}");
}

#[test]
fn a_killed_process_leaves_nothing_that_matters() {
    let dir = tempfile::tempdir().unwrap();
    let text = some_text(dir.path());
    let mut rank = start_rank(&text, dir.path(), true);
    let mut line = String::new();
    let mut says = BufReader::new(rank.stdout.take().unwrap());
    says.read_line(&mut line).unwrap();
    rank.kill().unwrap();
    rank.wait().unwrap();
    assert_eq!(
        files_of(dir.path(), ".tmp").len(),
        1,
        "it was about to write"
    );
    assert!(files_of(dir.path(), ".tokens").is_empty());
    let said = finish(start_rank(&text, dir.path(), false));
    assert!(said.starts_with("built"), "{said}");
    assert!(files_of(dir.path(), ".tmp").is_empty());
}
