//! Documents through all processors: one thread reads and parses them, as many as there are processors make tokens of them, and
//! the caller gets these in the order of the documents. What is in memory between them is bounded.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{CacheError, UNTRAINED};
use crate::example::{Encoder, ExampleError};
use crate::source::{Documents, Source, SourceError};

/// Text that a thread makes tokens of at a time: enough that handing it over costs nothing, little enough that all threads end
/// together.
const CHUNK_BYTES: usize = 512 << 10;

/// Documents that were read one after the other.
struct Chunk {
    documents: Vec<String>,
    progress: (u64, u64),
}

/// What they became.
#[derive(Default)]
pub(super) struct Encoded {
    /// Tokens of all documents that have some, each with [`UNTRAINED`] where it is not trained.
    pub(super) tokens: Vec<u32>,
    /// For each of these documents, where its tokens end.
    pub(super) ends: Vec<u64>,
    /// Tokens that are trained.
    pub(super) trained: u64,
    /// Documents that were read.
    pub(super) read: u64,
    /// Documents that the chat template refuses.
    pub(super) refused: u64,
    /// The first of them, counted from the chunk's first, which is 1.
    pub(super) first_refusal: Option<(u64, ExampleError)>,
    /// A document that is no such example, counted in the same way; nothing behind it was looked at.
    pub(super) failure: Option<(u64, ExampleError)>,
    /// Bytes that were read, and about how many there are.
    pub(super) progress: (u64, u64),
}

/// How it went with a chunk, and its number. What a thread panicked with is passed on to the caller.
type Numbered = (u64, Result<Encoded, Failure>);

enum Failure {
    Source(SourceError),
    Panic(Box<dyn Any + Send>),
}

/// Makes tokens of all documents with `threads` threads, and gives them to `take`, in order.
///
/// # Errors
/// Documents that cannot be read; what `take` returns. What was read before is taken before.
pub(super) fn run(
    source: &Source,
    encoder: &Encoder,
    threads: usize,
    mut take: impl FnMut(Encoded) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let documents = source.documents()?;
    let threads = threads.max(1);
    // While a thread is at a long document, the others may run ahead so far.
    let most = 2 * threads + 2;
    thread::scope(|scope| {
        // All of these end with this closure, however it ends; then the threads do, since nobody listens to them.
        let (permit, permits) = sync_channel(most);
        let (chunk, chunks) = sync_channel(most);
        let (result, results) = sync_channel(most);
        let failed = result.clone();
        scope.spawn(move || read(documents, &permit, &chunk, &failed));
        let chunks = Arc::new(Mutex::new(chunks));
        for _ in 0..threads {
            let (chunks, result) = (Arc::clone(&chunks), result.clone());
            scope.spawn(move || encode_all(encoder, &chunks, &result));
        }
        drop((chunks, result));
        in_order(&results, |encoded| {
            take(encoded)?;
            // Whoever waits for it may read on.
            let _ = permits.recv();
            Ok(())
        })
    })
}

/// Reads chunks, as many as there are permits for.
fn read(
    mut documents: Documents<'_>,
    permit: &SyncSender<()>,
    chunk: &SyncSender<(u64, Chunk)>,
    failed: &SyncSender<Numbered>,
) {
    for number in 0.. {
        // Nobody listens any more where these fail.
        if permit.send(()).is_err() {
            return;
        }
        match next_chunk(&mut documents) {
            Ok(next) if next.documents.is_empty() => return,
            Ok(next) => {
                if chunk.send((number, next)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = failed.send((number, Err(Failure::Source(error))));
                return;
            }
        }
    }
}

fn next_chunk(documents: &mut Documents<'_>) -> Result<Chunk, SourceError> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while bytes < CHUNK_BYTES {
        let Some(document) = documents.next().transpose()? else {
            break;
        };
        // A document costs memory even when it is empty.
        bytes += document.len() + size_of::<String>();
        chunk.push(document);
    }
    Ok(Chunk {
        documents: chunk,
        progress: documents.progress(),
    })
}

fn encode_all(
    encoder: &Encoder,
    chunks: &Mutex<Receiver<(u64, Chunk)>>,
    result: &SyncSender<Numbered>,
) {
    loop {
        // Whoever has the lock waits for the next chunk, and lets go of both together.
        let next = match chunks.lock() {
            Ok(chunks) => chunks.recv(),
            Err(poisoned) => poisoned.into_inner().recv(),
        };
        let Ok((number, chunk)) = next else {
            return;
        };
        let encoded = catch_unwind(AssertUnwindSafe(|| encode(encoder, &chunk)));
        if result
            .send((number, encoded.map_err(Failure::Panic)))
            .is_err()
        {
            return;
        }
    }
}

fn encode(encoder: &Encoder, chunk: &Chunk) -> Encoded {
    let mut encoded = Encoded {
        progress: chunk.progress,
        ..Encoded::default()
    };
    for document in &chunk.documents {
        encoded.read += 1;
        let example = match encoder.encode(document) {
            Ok(example) => example,
            Err(error) if error.is_refusal() => {
                encoded.refused += 1;
                encoded.first_refusal.get_or_insert((encoded.read, error));
                continue;
            }
            Err(error) => {
                encoded.failure = Some((encoded.read, error));
                return encoded;
            }
        };
        // Special tokens around nothing are not a document.
        if document.is_empty() || example.tokens.is_empty() {
            continue;
        }
        encoded.push(&example.tokens, &example.trained);
    }
    encoded
}

impl Encoded {
    /// Appends a document.
    pub(super) fn push(&mut self, tokens: &[u32], trained: &[bool]) {
        let pairs = tokens.iter().zip(trained);
        self.tokens
            .extend(pairs.map(|(token, is_trained)| match is_trained {
                true => *token,
                false => token | UNTRAINED,
            }));
        self.trained += trained.iter().filter(|is| **is).count() as u64;
        self.ends.push(self.tokens.len() as u64);
    }
}

/// Gives results on in the order of their numbers.
fn in_order(
    results: &Receiver<Numbered>,
    mut take: impl FnMut(Encoded) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (number, result) in results {
        early.insert(number, result);
        while let Some(result) = early.remove(&next) {
            next += 1;
            match result {
                Ok(encoded) => take(encoded)?,
                Err(Failure::Source(error)) => return Err(error.into()),
                Err(Failure::Panic(panic)) => resume_unwind(panic),
            }
        }
    }
    Ok(())
}
