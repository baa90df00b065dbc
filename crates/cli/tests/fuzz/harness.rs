//! Bytes that nobody wrote: good inputs, changed in the ways in which files are damaged or made to harm.
//!
//! A case is an input of the corpus and a few changes to it, drawn by proptest, which also finds the fewest changes that
//! still break something. Every run takes the whole corpus and a few hundred cases, always the same. The long form takes a
//! minute for each target, with a new seed that it prints; `TANDEM_TEST_SEED` sets it.
//!
//! A target may refuse its input or take it. It must not panic (an overflow is a panic in this build), hang, or ask for more
//! memory than [`MEMORY`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tandem_tensor::memory::processor_seconds;

/// Address space that all targets together may take beyond what the process begins with. A size that a file claims and that
/// is believed asks for more.
const MEMORY: u64 = 6 << 30;

/// No input is large, so none takes long: seconds of this process, since a machine may have better things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// Cases of a target in every run.
const CASES: u32 = 300;

/// Cases between two looks at the clock in the long form.
const BATCH: u32 = 500;

/// What to do with one input, whatever comes of it.
pub type Target<'a> = &'a dyn Fn(&[u8]);

/// One change to bytes. Places are fractions of what is there, so that a change fits any input.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    /// A number of so many bytes, little-endian.
    Number(Index, usize, u64),
    /// A number in text.
    Digits(Index, String),
    Remove(Index, Index),
    Repeat(Index, Index, usize),
    Insert(Index, Vec<u8>),
    Truncate(Index),
    /// From here on, another input of the corpus.
    Splice(Index, Index),
    /// A value of a JSON text.
    Json(Index, Value),
    /// A key of a JSON text, taken out.
    Without(Index),
    /// A key of a JSON text, given to another value.
    Rename(Index, Index),
    /// One value of a JSON text in the place of another.
    Move(Index, Index),
}

/// Numbers at which something ends.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u32..64, -1i64..=1).prop_map(|(power, more)| (1u64 << power).wrapping_add_signed(more)),
        Just(u64::MAX),
        any::<u64>(),
        0u64..300,
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        number().prop_map(|number| json!(number)),
        number().prop_map(|number| json!((number as i64).wrapping_neg())),
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(""),
            json!("x"),
            json!([]),
            json!({}),
            json!([[]]),
            json!({"": {}}),
            json!(0.5),
            json!(-0.0),
            json!(1e-320),
            json!(1.7e308),
            json!(-1e300),
            json!("../x"),
            json!("/"),
            json!("a\u{0}b"),
            json!("\u{202e}\u{1f600}"),
            json!("1e400"),
            json!("NaN"),
            json!(["a", 1, null]),
        ]),
        (1usize..200).prop_map(|depth| (0..depth).fold(json!(1), |inner, _| json!([inner]))),
        (1usize..3000).prop_map(|length| json!("\u{e9}".repeat(length))),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        1 => (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => (at(), prop::sample::select(vec![0, 1, b'"', b'\n', b'{', b',', 0x7f, 0x80, 0xff]))
            .prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (at(), prop::sample::select(vec![1usize, 2, 4, 8]), number())
            .prop_map(|(at, width, number)| Change::Number(at, width, number)),
        1 => (at(), prop_oneof![
            number().prop_map(|number| number.to_string()),
            Just("-1".to_owned()),
            Just("1e999".to_owned()),
            Just("18446744073709551616".to_owned()),
        ])
            .prop_map(|(at, text)| Change::Digits(at, text)),
        1 => (at(), at()).prop_map(|(from, to)| Change::Remove(from, to)),
        1 => (at(), at(), 1usize..40).prop_map(|(from, to, times)| Change::Repeat(from, to, times)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, new)| Change::Insert(at, new)),
        1 => at().prop_map(Change::Truncate),
        1 => (at(), at()).prop_map(|(at, other)| Change::Splice(at, other)),
        3 => (at(), value()).prop_map(|(at, value)| Change::Json(at, value)),
        1 => at().prop_map(Change::Without),
        1 => (at(), at()).prop_map(|(at, to)| Change::Rename(at, to)),
        1 => (at(), at()).prop_map(|(at, to)| Change::Move(at, to)),
    ]
}

impl Change {
    fn apply(&self, mut bytes: Vec<u8>, corpus: &[Vec<u8>]) -> Vec<u8> {
        if bytes.is_empty() {
            return vec![0];
        }
        let length = bytes.len();
        let range = |a: &Index, b: &Index| {
            let (a, b) = (a.index(length), b.index(length));
            // Mostly short ones.
            a.min(b)..a.max(b).min(a.min(b) + 64) + 1
        };
        match self {
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Self::Set(at, byte) => bytes[at.index(length)] = *byte,
            Self::Number(at, width, number) => {
                let at = at.index(length);
                for (byte, new) in bytes[at..]
                    .iter_mut()
                    .zip(number.to_le_bytes())
                    .take(*width)
                {
                    *byte = new;
                }
            }
            Self::Digits(at, text) => {
                let at = at.index(length);
                let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else {
                    return bytes;
                };
                let start = at + start;
                let count = bytes[start..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .count();
                bytes.splice(start..start + count, text.bytes());
            }
            Self::Remove(from, to) => drop(bytes.drain(range(from, to))),
            Self::Repeat(from, to, times) => {
                let range = range(from, to);
                let part = bytes[range.clone()].repeat(*times);
                bytes.splice(range.end..range.end, part);
            }
            Self::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Truncate(at) => bytes.truncate(at.index(length)),
            Self::Splice(at, other) => {
                let other = &corpus[other.index(corpus.len())];
                let at = at.index(length);
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(at..).unwrap_or_default());
            }
            Self::Json(..) | Self::Without(_) | Self::Rename(..) | Self::Move(..) => {
                let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) else {
                    return bytes;
                };
                self.apply_to_json(&mut json);
                return serde_json::to_vec(&json).unwrap_or(bytes);
            }
        }
        bytes
    }

    fn apply_to_json(&self, json: &mut Value) {
        let mut places = Vec::new();
        collect(json, String::new(), &mut places);
        let place = |at: &Index| places[at.index(places.len())].clone();
        // A key of an object, and the object.
        let keyed = |at: &Index| {
            let place = place(at);
            let (parent, key) = place.rsplit_once('/')?;
            Some((parent.to_owned(), key.replace("~1", "/").replace("~0", "~")))
        };
        let object = |json: &'_ mut Value, parent: &str, key: &str| {
            json.pointer_mut(parent)?.as_object_mut()?.remove(key)
        };
        match self {
            Self::Json(at, value) => {
                if let Some(found) = json.pointer_mut(&place(at)) {
                    *found = value.clone();
                }
            }
            Self::Without(at) => {
                if let Some((parent, key)) = keyed(at) {
                    object(json, &parent, &key);
                }
            }
            Self::Rename(at, to) => {
                if let (Some((parent, key)), Some((_, new))) = (keyed(at), keyed(to))
                    && let Some(value) = object(json, &parent, &key)
                    && let Some(Value::Object(map)) = json.pointer_mut(&parent)
                {
                    map.insert(new, value);
                }
            }
            Self::Move(at, to) => {
                let value = json.pointer(&place(at)).cloned();
                if let (Some(value), Some(found)) = (value, json.pointer_mut(&place(to))) {
                    *found = value;
                }
            }
            _ => {}
        }
    }
}

/// The pointers of all values.
fn collect(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(inner, format!("{place}/{key}"), places);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                collect(inner, format!("{place}/{index}"), places);
            }
        }
        _ => {}
    }
    places.push(place);
}

/// `input` with a few changes that the seed decides.
pub fn mutant(input: &[u8], seed: u64) -> Vec<u8> {
    let corpus = [input.to_vec()];
    let changes = prop::collection::vec(change(), 1..4);
    let drawn = changes.new_tree(&mut TestRunner::new_with_rng(
        Config::default(),
        random(seed),
    ));
    let changes = drawn.unwrap().current();
    changes
        .iter()
        .fold(input.to_vec(), |bytes, change| change.apply(bytes, &corpus))
}

fn random(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// Inputs of the target `name` that were kept: those that once broke something.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests-data/fuzz")
        .join(name);
    let mut paths: Vec<PathBuf> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Limits this process, once, so that a size that is believed ends it.
fn limit_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
        let limit = pages * 4096 + MEMORY;
        let maximum = getrlimit(Resource::As).maximum;
        setrlimit(
            Resource::As,
            Rlimit {
                current: Some(limit),
                maximum,
            },
        )
        .unwrap();
    });
}

/// One input. What it is stays in a file while it is tried, for when it ends the process.
fn try_one(name: &str, input: &[u8], target: Target<'_>) {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}.input"));
    fs::write(&place, input).unwrap();
    let (begin, computed) = (Instant::now(), processor_seconds());
    target(input);
    // Other tests compute meanwhile, so neither says enough by itself.
    let computed = Duration::from_secs_f64(processor_seconds() - computed);
    let took = begin.elapsed().min(computed);
    assert!(took < PATIENCE, "{took:?} for {} bytes", input.len());
}

/// Cases with this seed; the first that fails is made small and told.
fn cases(name: &str, corpus: &[Vec<u8>], target: Target<'_>, count: u32, seed: u64) {
    let config = Config {
        cases: count,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let strategy = (any::<Index>(), prop::collection::vec(change(), 1..6));
    let result =
        TestRunner::new_with_rng(config, random(seed)).run(&strategy, |(first, changes)| {
            let input = corpus[first.index(corpus.len())].clone();
            let input = changes
                .iter()
                .fold(input, |bytes, change| change.apply(bytes, corpus));
            try_one(name, &input, target);
            Ok(())
        });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (first, changes))) => {
            let input = corpus[first.index(corpus.len())].clone();
            let input = changes
                .iter()
                .fold(input, |bytes, change| change.apply(bytes, corpus));
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}.broken"));
            fs::write(&place, &input).unwrap();
            panic!(
                "TANDEM_TEST_SEED={seed}: {reason}\n{changes:?}\nkeep {} in tests-data/fuzz/{name}:\n{}",
                place.display(),
                String::from_utf8_lossy(&input[..input.len().min(2000)])
            );
        }
        Err(error) => panic!("{error}"),
    }
}

/// The corpus, which begins with `seeds`, and a few hundred cases that are always the same.
pub fn short(name: &str, seeds: Vec<Vec<u8>>, target: Target<'_>) {
    limit_memory();
    let corpus: Vec<Vec<u8>> = seeds.into_iter().chain(kept(name)).collect();
    for input in &corpus {
        try_one(name, input, target);
    }
    cases(name, &corpus, target, CASES, 0);
}

/// Some inputs, as they are.
pub fn each(name: &str, inputs: &[Vec<u8>], target: Target<'_>) {
    limit_memory();
    for input in inputs {
        try_one(name, input, target);
    }
}

/// New cases for a minute.
pub fn long(name: &str, seeds: Vec<Vec<u8>>, target: Target<'_>) {
    limit_memory();
    let corpus: Vec<Vec<u8>> = seeds.into_iter().chain(kept(name)).collect();
    let given = std::env::var("TANDEM_TEST_SEED").ok();
    let mut seed = match &given {
        Some(text) => text.parse().expect("TANDEM_TEST_SEED is a number"),
        None => u64::from(std::process::id()) << 20,
    };
    println!("{name}: TANDEM_TEST_SEED={seed} and following");
    let (begin, first) = (Instant::now(), seed);
    while begin.elapsed() < Duration::from_secs(60) {
        cases(name, &corpus, target, BATCH, seed);
        seed += 1;
    }
    println!("{name}: {} cases", (seed - first) * u64::from(BATCH));
}
