//! Trouble in the middle of training, with real ranks: what must be noticed is noticed, on every rank, with its name.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod disagreement;
mod peers;
mod small;
