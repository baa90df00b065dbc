//! Every parser of bytes that come from elsewhere, against bytes that nobody wrote: `cargo xtask test fuzz`, and
//! `cargo xtask test --long fuzz` for a minute each.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod chat;
mod checkpoints;
mod control;
mod data;
mod flags;
// The test of whole runs uses more of it.
#[allow(dead_code)]
mod harness;
mod models;
mod network;

macro_rules! targets {
    ($($room:ident: $($name:ident)*;)*) => {
        $($(
            mod $name {
                use super::{harness, $room};

                #[test]
                fn fuzz() {
                    harness::short(stringify!($name), $room::seeds::$name(), &$room::$name);
                }

                #[test]
                #[ignore = "a minute: cargo xtask test --long fuzz"]
                fn fuzz_for_a_minute() {
                    harness::long(stringify!($name), $room::seeds::$name(), &$room::$name);
                }
            }
        )*)*
    };
}

targets! {
    models: config weights index tokenizer;
    checkpoints: manifest commit snapshot;
    data: token_cache text jsonl csv parquet gzip zstd;
    control: events commands run_json lease;
    network: handshake store operation;
    chat: template tokenizer_config conversation pair;
    flags: yaml toml run_config deepspeed resumed;
}
