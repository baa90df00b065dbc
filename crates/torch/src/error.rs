//! What can go wrong with libtorch, as sentences.

use std::path::PathBuf;

use crate::version::{OLDEST, Version};

/// Why there is no libtorch to compute with, or what it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TorchError {
    /// No place that is looked at has one.
    #[error(
        "there is no libtorch here. Install torch into this Python environment (pip install 'torch>={OLDEST}'), or name the \
         folder of one in TANDEM_LIBTORCH, or run `cargo xtask setup` in a checkout{}", passed_over(.looked_at)
    )]
    NotFound {
        /// What was looked at and why it did not do.
        looked_at: Vec<String>,
    },
    /// A variable names something else.
    #[error(
        "{variable} is {}, where there is no libtorch_cpu.so. Name the folder of a torch package or of a libtorch, or unset it",
        folder.display()
    )]
    NotALibtorch {
        /// The environment variable.
        variable: &'static str,
        /// What it names.
        folder: PathBuf,
    },
    /// The loader refused the library or something that it needs.
    #[error(
        "{} does not load: {reason}. Install torch again, or name another one in TANDEM_LIBTORCH", path.display()
    )]
    DoesNotLoad {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// A release from before the C functions that are needed.
    #[error(
        "the libtorch in {} is {version}, and Tandem needs {OLDEST} or newer: pip install --upgrade torch, or name another one in \
         TANDEM_LIBTORCH", folder.display()
    )]
    TooOld {
        /// Where it is.
        folder: PathBuf,
        /// What it says of itself.
        version: Version,
    },
    /// Functions are missing.
    #[error(
        "the libtorch in {} lacks {}: it is no complete libtorch of a release from {OLDEST} on. Name another one in \
         TANDEM_LIBTORCH", folder.display(), missing.join(", ")
    )]
    Incomplete {
        /// Where it is.
        folder: PathBuf,
        /// The names of the C functions or operators.
        missing: Vec<String>,
    },
    /// Parts of two installations are in this process.
    #[error(
        "parts of two libtorchs are loaded, {} and {}: unset LD_LIBRARY_PATH and LD_PRELOAD, or let them name the one in use",
        used.display(), other.display()
    )]
    Mixed {
        /// The folder in use.
        used: PathBuf,
        /// A library from elsewhere.
        other: PathBuf,
    },
    /// A libtorch without its CUDA part.
    #[error(
        "the libtorch {version} in {} has no libtorch_cuda.so: it is a build for CPUs. Install torch with CUDA, or pass --device \
         cpu", folder.display()
    )]
    NoCudaPart {
        /// Where it is.
        folder: PathBuf,
        /// Which it is.
        version: Version,
    },
    /// libtorch refused an operation.
    #[error("libtorch, {operation}: {message}")]
    Operation {
        /// The function or operator.
        operation: String,
        /// libtorch's own words, or where to find them.
        message: String,
    },
}

fn passed_over(looked_at: &[String]) -> String {
    match looked_at {
        [] => String::new(),
        some => format!(" (looked at: {})", some.join("; ")),
    }
}

/// The value, or a panic with libtorch's message.
#[track_caller]
pub(crate) fn expect<T>(result: Result<T, TorchError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
