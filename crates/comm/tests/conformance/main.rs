//! One suite for every transport. Ranks are processes: each test starts copies of this binary, and a rank that fails,
//! hangs or dies where it should not fails the test.

// Clippy's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

mod collectives;
mod devices;
mod failures;
mod frames;
mod numbers;
mod overlap;
mod rendezvous;
mod strangers;
