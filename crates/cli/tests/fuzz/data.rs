//! Files of text, and the cache of their tokens.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tandem_data::hub::Settings;
use tandem_data::{
    DatasetOptions, Encoder, Hub, Packing, RowLayout, Rows, Source, TokenCache, TokenDataset,
    Tokenizer, Verify,
};

/// Where a cache's header has the hash of what follows it, its key, and the hash of all this.
const BODY_HASH: std::ops::Range<usize> = 56..88;
const KEY: std::ops::Range<usize> = 88..120;
const HEADER_HASH: std::ops::Range<usize> = 120..144;

pub fn hub() -> Hub {
    Hub::new(Settings::from_variables(|_| None).unwrap())
}

pub mod seeds {
    use super::*;

    pub fn token_cache() -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        file("tokenizer.json", &crate::models::seeds::tokenizer()[0]);
        file("tokenizer_config.json", br#"{"eos_token": "<end>"}"#);
        let text = file("text.txt", b"a b c\nb b\n\nc a b c a\n");
        let encoder = Encoder::of_text(Tokenizer::load(folder.path()).unwrap());
        let options = DatasetOptions::new(text.to_str().unwrap());
        let source = Source::resolve(&options, &hub(), &mut ()).unwrap();
        let cache =
            TokenCache::build_or_open(&source, &encoder, &folder.path().join("cache"), &mut ())
                .unwrap();
        vec![fs::read(cache.path()).unwrap()]
    }

    pub fn text() -> Vec<Vec<u8>> {
        vec![
            b"one\ntwo\r\n\nthree".to_vec(),
            "\u{feff}caf\u{e9}\n".into(),
        ]
    }

    pub fn jsonl() -> Vec<Vec<u8>> {
        [
            "{\"text\": \"one\"}\n{\"text\": null, \"n\": NaN}\n{\"text\": \"t\\u00e9\\ud83d\\ude00\"}\n",
            "[{\"text\": \"a\", \"x\": [1, {\"y\": -Infinity}]}, {\"text\": \"b\"}]",
            "{\"text\": \"a\"}{\"text\":\n \"b\"}",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    pub fn csv() -> Vec<Vec<u8>> {
        [
            "id,text\n1,one\n2,\"two, \"\"quoted\"\"\nlines\"\n",
            "text\na\n\nb\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    pub fn parquet() -> Vec<Vec<u8>> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/parquet/arrow.parquet");
        vec![fs::read(path).unwrap()]
    }

    /// Its inputs are files: nothing here packs.
    pub fn gzip() -> Vec<Vec<u8>> {
        vec![vec![0x1f, 0x8b, 8, 0]]
    }

    /// As above.
    pub fn zstd() -> Vec<Vec<u8>> {
        vec![vec![0x28, 0xb5, 0x2f, 0xfd]]
    }
}

/// A cache as it is, and one whose hashes were made to fit: whoever can change the tokens can do that too.
pub fn token_cache(bytes: &[u8]) {
    open_cache(bytes);
    if bytes.len() >= HEADER_HASH.end {
        let mut fitting = bytes.to_vec();
        let body = blake3::hash(&bytes[HEADER_HASH.end..]);
        fitting[BODY_HASH].copy_from_slice(body.as_bytes());
        let header = blake3::hash(&fitting[..HEADER_HASH.start]);
        fitting[HEADER_HASH].copy_from_slice(&header.as_bytes()[..HEADER_HASH.len()]);
        open_cache(&fitting);
    }
}

fn open_cache(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let name = bytes.get(KEY).map_or_else(String::new, |key| {
        key.iter().map(|byte| format!("{byte:02x}")).collect()
    });
    let path = folder.path().join(format!("{name}.tokens"));
    fs::write(&path, bytes).unwrap();
    // The header alone is for a file that was looked through before.
    for verify in [Verify::Full, Verify::Header] {
        let Ok(cache) = TokenCache::open(&path, verify) else {
            return;
        };
        let cache = Arc::new(cache);
        let strategies = [Packing::Wrapped, Packing::BestFit, Packing::BestFitSplit];
        for packing in strategies.map(Some).into_iter().chain([None]) {
            let layout = RowLayout {
                packing,
                document_mask: true,
            };
            let Ok(dataset) = TokenDataset::new(Arc::clone(&cache), 4, layout) else {
                continue;
            };
            let (mut ids, mut labels, mut mask) = ([0; 4], [0; 4], [0; 4]);
            for row in (0..dataset.len().min(20)).chain(dataset.len().checked_sub(1)) {
                dataset.fill(row, &mut ids, &mut labels, &mut mask);
            }
        }
    }
}

/// All documents of a file of this name.
fn read(name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let options = DatasetOptions::new(path.to_str().unwrap());
    let Ok(source) = Source::resolve(&options, &hub(), &mut ()) else {
        return;
    };
    let Ok(documents) = source.documents() else {
        return;
    };
    for document in documents {
        let Ok(text) = document else {
            return;
        };
        assert!(
            text.len() <= 64 << 20,
            "{} bytes of {}",
            text.len(),
            bytes.len()
        );
    }
}

/// Brackets without end.
#[test]
fn fuzz_what_is_deep() {
    let many = |text: &str| text.repeat(1_000_000).into_bytes();
    let json = [
        many("["),
        many("{\"text\":"),
        [b"{\"text\": \"a\", \"x\": ".to_vec(), many("[")].concat(),
        [b"[".to_vec(), many("{\"text\": \"a\"},"), b"]".to_vec()].concat(),
    ];
    crate::harness::each("jsonl", &json, &jsonl);
}

pub fn text(bytes: &[u8]) {
    read("data.txt", bytes);
}

pub fn jsonl(bytes: &[u8]) {
    read("data.jsonl", bytes);
}

pub fn csv(bytes: &[u8]) {
    read("data.csv", bytes);
    read("data.tsv", bytes);
}

pub fn parquet(bytes: &[u8]) {
    read("data.parquet", bytes);
}

pub fn gzip(bytes: &[u8]) {
    read("data.jsonl.gz", bytes);
}

pub fn zstd(bytes: &[u8]) {
    read("data.txt.zst", bytes);
}
