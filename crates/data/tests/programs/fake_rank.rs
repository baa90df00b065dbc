//! A rank as far as data are concerned: builds or opens a token cache and says which of the two it did.
//!
//! Arguments: dataset, tokenizer folder, cache folder, and `pause` to stop before the first token is written, until a
//! line arrives on standard input.

use std::env;
use std::io::{self, Write};
use std::path::Path;

use tandem_data::{
    DataError, DatasetOptions, Encoder, Hub, Progress, Source, TokenCache, Tokenizer,
};

/// Notices whether anything was tokenized.
struct Watch {
    has_built: bool,
    pauses: bool,
}

impl Progress for Watch {
    fn begin(&mut self, what: &str) {
        self.has_built = true;
        println!("{what}");
        let _ = io::stdout().flush();
        if self.pauses {
            let _ = io::stdin().read_line(&mut String::new());
        }
    }

    fn update(&mut self, _done_bytes: u64, _total_bytes: u64) {}
}

fn main() -> Result<(), DataError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [dataset, tokenizer, cache_dir, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: DATASET TOKENIZER CACHE [pause]");
        std::process::exit(2);
    };
    let mut watch = Watch {
        has_built: false,
        pauses: rest.iter().any(|argument| argument == "pause"),
    };
    let hub = Hub::from_env()?;
    let source = Source::resolve(&DatasetOptions::new(dataset), &hub, &mut ())?;
    let encoder = Encoder::of_text(Tokenizer::load(Path::new(tokenizer))?);
    let cache = TokenCache::build_or_open(&source, &encoder, Path::new(cache_dir), &mut watch)?;
    let deed = if watch.has_built { "built" } else { "reused" };
    println!("{deed} {} {}", cache.tokens(), cache.path().display());
    Ok(())
}
