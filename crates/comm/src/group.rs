//! Groups of ranks: the trait, what of it is the same for every transport, and the group of one.
//!
//! From a caller's tensors to a transport: `process_group` is what callers see, `member` makes `operation`s of what they
//! pass, `queue` keeps these in order and hands them to a transport, one at a time. `work` is a submitted one.

pub(crate) mod context;
pub(crate) mod cpu;
pub(crate) mod host_values;
pub(crate) mod member;
pub(crate) mod observe;
pub(crate) mod operation;
pub(crate) mod process_group;
pub(crate) mod queue;
pub(crate) mod single;
pub(crate) mod work;
