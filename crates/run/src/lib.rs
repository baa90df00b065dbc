//! A run: what it is ([`spec`]), how it is started ([`start`]), and what each of its workers does ([`worker`]).
//!
//! Nothing here knows a command line. Whoever starts a run says so with a [`spec::RunSpec`], and gets back the exit code
//! or a [`failure::Failure`].

pub mod engine;
pub mod environment;
mod examples;
pub mod failure;
mod identity;
pub mod libtorch;
mod model_files;
mod prepare;
pub mod preview;
pub mod ranks;
mod resume;
pub mod session;
mod show;
pub mod spec;
pub mod start;
pub mod storage;
pub mod weights;
pub mod worker;
