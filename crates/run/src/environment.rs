//! The variables of this process, read once. What others mean (a launcher's, a store's, the hub's) is theirs to say; they
//! are handed what they ask for.

use std::ffi::OsString;
use std::path::PathBuf;

use tandem_launch::env::{CHECKPOINT, RUN_DIR};

/// Name of the variable with the token caches, one for each dataset, that the controller has built and checked, so that its
/// workers, at every start, need not read all data to see that they are the right ones.
pub const TOKEN_CACHE: &str = "TANDEM_TOKEN_CACHE";
/// The same for the rows that the run is evaluated on.
pub const EVAL_TOKEN_CACHE: &str = "TANDEM_EVAL_TOKEN_CACHE";
/// Where the user has named a checkpoint to continue from: the moment, in microseconds since 1970, after which a checkpoint is
/// of this start. The controller tells its workers, because a restart goes on from those.
pub const RESUMED_AT: &str = "TANDEM_RESUMED_AT";
/// Names another Python than the one beside this program or on PATH.
pub const PYTHON: &str = "TANDEM_PYTHON";
/// Names the folder where Ray's workers look for programs first (`tandem_ray.worker_spec`).
const BIN_DIR: &str = "TANDEM_BIN_DIR";

/// What this process was started with.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Folder of the run, from a supervisor.
    pub run_dir: Option<String>,
    /// The newest checkpoint on the supervisor's record; where it is set, the supervisor keeps the list of checkpoints.
    pub checkpoint: Option<String>,
    /// See [`TOKEN_CACHE`].
    token_cache: Option<OsString>,
    /// See [`EVAL_TOKEN_CACHE`].
    pub eval_token_cache: Option<PathBuf>,
    /// See [`RESUMED_AT`].
    pub resumed_at: Option<i64>,
    /// See [`PYTHON`].
    pub python: Option<PathBuf>,
    /// Whether Ray's workers are told where programs are.
    pub has_bin_dir: bool,
    /// Where programs are looked for.
    pub path: Option<OsString>,
    variables: Vec<(String, String)>,
}

impl Environment {
    /// The token caches of so many datasets, where somebody has built them. The name of a single one may have any characters.
    pub fn token_caches(&self, datasets: usize) -> Vec<PathBuf> {
        match (&self.token_cache, datasets) {
            (None, _) => Vec::new(),
            (Some(path), 1) => vec![path.into()],
            (Some(paths), _) => std::env::split_paths(paths).collect(),
        }
    }

    /// Reads all variables. One whose value is not Unicode counts as not set, unless it is a path.
    pub fn read() -> Self {
        let all: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        let path = |name: &str| {
            let found = all.iter().find(|(own, _)| own == name);
            found.map(|(_, value)| value.clone())
        };
        let text = |name: &str| path(name)?.into_string().ok();
        Self {
            run_dir: text(RUN_DIR),
            checkpoint: text(CHECKPOINT),
            token_cache: path(TOKEN_CACHE),
            eval_token_cache: path(EVAL_TOKEN_CACHE).map(PathBuf::from),
            resumed_at: text(RESUMED_AT).and_then(|moment| moment.parse().ok()),
            python: path(PYTHON).map(PathBuf::from),
            has_bin_dir: path(BIN_DIR).is_some(),
            path: path("PATH"),
            variables: all
                .into_iter()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        }
    }

    /// One variable.
    pub fn get(&self, name: &str) -> Option<String> {
        let found = self.variables.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.clone())
    }

    /// All of them, for object stores, whose credentials have many names.
    pub fn variables(&self) -> Vec<(String, String)> {
        self.variables.clone()
    }
}
