//! Checkpoints from the outside: what is written on one mesh is read on any other, and trouble of every kind leaves either
//! a true error or an older checkpoint, never a wrong one.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod background;
mod damage;
mod example;
mod export;
mod full_disk;
mod killed;
mod moto;
mod round_trip;
mod run_dir;
mod sample;
mod stores;
mod torn;
mod weights;
