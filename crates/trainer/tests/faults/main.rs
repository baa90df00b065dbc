//! Trouble in the middle of training, with real ranks: what must be noticed is noticed, on every rank, with its name.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod disagreement;
mod peers;
#[allow(dead_code)] // the tests of comm use more of it
#[path = "../../../comm/tests/conformance/ranks.rs"]
mod ranks;
mod small;
