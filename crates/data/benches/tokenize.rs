//! How fast a dataset becomes a token cache: MB of text a second, by the clock and by the processors' time, and the memory that it
//! takes.
//!
//!     cargo bench --package tandem-data --bench tokenize -- [--file FILE] [--megabytes N] [--tokenizer DIR]
//!         [--threads N] [--repeats N] [--python PYTHON]
//!
//! Without a file it is the demo's text, again and again until there are N MB (100). With `--python`, which must have `datasets`
//! and `tokenizers`, the same file goes through Hugging Face's libraries with as many processes, in turns
//! (benches/peers/tokenize_text.py), and the numbers of tokens are compared.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tandem_data::{DatasetOptions, Encoder, Hub, Source, TokenCache, Tokenizer};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Options {
    file: Option<PathBuf>,
    megabytes: u64,
    tokenizer: PathBuf,
    threads: usize,
    repeats: usize,
    python: Option<PathBuf>,
}

/// One pass over the file.
#[derive(Debug, serde::Deserialize)]
struct Measured {
    /// By the clock.
    seconds: f64,
    /// Of all processors.
    cpu_seconds: f64,
    /// At its peak, without what is mapped from files.
    memory_mb: f64,
    tokens: u64,
}

fn main() -> Outcome<()> {
    let options = options()?;
    let folder = tempfile::tempdir()?;
    let file = match &options.file {
        Some(file) => file.clone(),
        None => demo_text(folder.path(), options.megabytes)?,
    };
    let megabytes = fs::metadata(&file)?.len() as f64 / 1e6;
    println!(
        "{megabytes:.0} MB of text, {} threads or processes",
        options.threads
    );
    println!(
        "{:20} {:>8} {:>14} {:>10} {:>12}",
        "", "MB/s", "MB/CPU second", "memory MB", "tokens"
    );
    for turn in 1..=options.repeats {
        let own = tandem(
            &options,
            &file,
            &folder.path().join(format!("cache-{turn}")),
        )?;
        show("tandem", megabytes, &own);
        let Some(python) = &options.python else {
            continue;
        };
        let peer = hugging_face(&options, python, &file)?;
        show("datasets", megabytes, &peer);
        if peer.tokens != own.tokens {
            return Err("the numbers of tokens differ".into());
        }
    }
    Ok(())
}

fn options() -> Outcome<Options> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut options = Options {
        file: None,
        megabytes: 100,
        tokenizer: root.join("demo/model"),
        threads: thread::available_parallelism()?.get(),
        repeats: 3,
        python: None,
    };
    // cargo adds a word of its own.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(flag) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--file" => options.file = Some(value.into()),
            "--megabytes" => options.megabytes = value.parse()?,
            "--tokenizer" => options.tokenizer = value.into(),
            "--threads" => options.threads = value.parse()?,
            "--repeats" => options.repeats = value.parse()?,
            "--python" => options.python = Some(value.into()),
            _ => return Err(format!("{flag} is no flag of this benchmark").into()),
        }
    }
    Ok(options)
}

fn demo_text(folder: &Path, megabytes: u64) -> Outcome<PathBuf> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/data/kjv.txt");
    let text = fs::read(demo)?;
    let path = folder.join("text.txt");
    let mut file = BufWriter::new(File::create(&path)?);
    let mut written = 0;
    while written < megabytes * 1_000_000 {
        file.write_all(&text)?;
        written += text.len() as u64;
    }
    file.flush()?;
    Ok(path)
}

fn tandem(options: &Options, file: &Path, cache_dir: &Path) -> Outcome<Measured> {
    let encoder = Encoder::of_text(Tokenizer::load(&options.tokenizer)?);
    let name = file.to_str().ok_or("the file's name is not Unicode")?;
    let source = Source::resolve(&DatasetOptions::new(name), &Hub::from_env()?, &mut ())?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build()?;
    let (before, start) = (cpu_seconds()?, Instant::now());
    let (cache, memory_mb) = with_peak_memory(|| {
        pool.install(|| TokenCache::build_or_open(&source, &encoder, cache_dir, &mut ()))
    });
    let cache = cache?;
    Ok(Measured {
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds()? - before,
        memory_mb,
        tokens: cache.tokens(),
    })
}

fn hugging_face(options: &Options, python: &Path, file: &Path) -> Outcome<Measured> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peers/tokenize_text.py");
    let output = Command::new(python)
        .arg(script)
        .arg(file)
        .arg(options.tokenizer.join("tokenizer.json"))
        .arg(options.threads.to_string())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().ok_or("tokenize_text.py said nothing")?;
    Ok(serde_json::from_str(line)?)
}

fn show(name: &str, megabytes: f64, measured: &Measured) {
    println!(
        "{name:20} {:>8.1} {:>14.1} {:>10.0} {:>12}",
        megabytes / measured.seconds,
        megabytes / measured.cpu_seconds,
        measured.memory_mb,
        measured.tokens
    );
}

/// What this process has used of all processors.
fn cpu_seconds() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name before may have spaces; then the state and ten further fields.
    let fields = stat.rsplit_once(')').ok_or("/proc/self/stat")?.1;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<f64>, _> = times.map(str::parse).collect();
    // Linux has told user space of 100 ticks a second for as long as there is this file.
    Ok(ticks?.iter().sum::<f64>() / 100.0)
}

/// The most memory that is not mapped from files, looked at every few milliseconds.
fn with_peak_memory<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let (over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_kb(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        result
    });
    (result, peak.into_inner() as f64 / 1e3)
}

fn anonymous_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
