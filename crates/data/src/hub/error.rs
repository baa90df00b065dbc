//! What can go wrong between a name and its files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a name did not lead to local files.
#[derive(Debug, Error)]
pub enum HubError {
    /// A path that leads nowhere.
    #[error("`{name}`: no such file or folder, and not a name on the hub (`name` or `owner/name`)")]
    NoSuchPath {
        /// What was asked for.
        name: String,
    },
    /// A path that cannot be followed: a folder on the way is not this user's to enter, say.
    #[error("cannot look at {}: {source}", path.display())]
    NoWay {
        /// What was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file where a folder is expected.
    #[error("{} is a file: pass the folder it is in", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// A pipe, socket or device where a model has a file: whoever reads it may wait for ever.
    #[error("{} is no regular file: the files of a model must be", path.display())]
    NotAFile {
        /// What should be a file.
        path: PathBuf,
    },
    /// A variable of the environment that is not understood.
    #[error("{variable} is `{value}`: it must be {expected}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Offline, and never downloaded.
    #[error(
        "{repo} is not in the cache {} and HF_HUB_OFFLINE is set: \
         unset it to download, or pass a local folder", cache.display()
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Not asked for more than is cached, and not everything is.
    #[error(
        "{repo} is in the cache without {file}: download the rest with network and without HF_HUB_OFFLINE"
    )]
    FileNotCached {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The hub answered, and not with what was asked for.
    #[error("{endpoint} answers {status} for {repo}: {}", advice(*status))]
    Refused {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
        /// The HTTP status.
        status: u16,
    },
    /// A repository whose owner decides who gets it.
    #[error(
        "{repo} is only for those whom its owner has granted access: ask for access at {page}, and set HF_TOKEN to a token of the \
         account that has it"
    )]
    Gated {
        /// The repository.
        repo: String,
        /// Its page.
        page: String,
    },
    /// The hub did not answer, or not in its protocol.
    #[error(
        "cannot reach {endpoint} for {repo}: {reason}; \
         check the network and HF_ENDPOINT, or pass a local folder"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
        /// What happened.
        reason: String,
    },
    /// A download that broke off. What has arrived is kept, and the next run goes on from there.
    #[error("downloading {file} of {repo} failed: {reason}; run again to continue")]
    Download {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What happened.
        reason: String,
    },
    /// A repository of something else.
    #[error("{repo} has no {file}: it is not a model in the format of Hugging Face transformers")]
    NotAModel {
        /// The repository.
        repo: String,
        /// What is missing.
        file: &'static str,
    },
    /// Weights in another format.
    #[error(
        "{repo} has no .safetensors weights: convert it \
         (`AutoModelForCausalLM.from_pretrained(..).save_pretrained(..)`) and pass the folder"
    )]
    NoWeights {
        /// The repository.
        repo: String,
    },
    /// An index that does not name the files of the weights.
    #[error("{file} of {repo} is not valid: {reason}")]
    Index {
        /// The repository.
        repo: String,
        /// The index.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The cache cannot be used.
    #[error("cannot {action} {}: {source}; HF_HOME chooses another place for the cache", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        401 => {
            "no such repository, or a private one: check the name, and set HF_TOKEN if it needs one"
        }
        404 => "no such repository: check the name",
        429 => "too many requests: wait, or set HF_TOKEN",
        500.. => "the hub has a problem: try again later",
        _ => "not an answer of the hub's protocol: check HF_ENDPOINT",
    }
}
