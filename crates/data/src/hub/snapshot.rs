//! One revision of a repository, in the cache or on its way there.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use tandem_files::read_small_text;

use super::error::HubError;
use super::settings::Settings;
use crate::lock::FileLock;
use crate::progress::Progress;

/// How long the hub may take to list a repository.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the file that says which commit a branch is at.
const LONGEST_REFERENCE: u64 = 1 << 10;

/// Attempts to go on with a download that breaks off.
const RETRIES: usize = 3;

/// The files of a repository at its `main` branch, of which some may be on the hub only.
#[derive(Debug)]
pub struct Snapshot {
    name: String,
    dir: PathBuf,
    files: Vec<String>,
    /// Without it nobody is asked: what is cached is all there is.
    remote: Option<Box<Remote>>,
}

/// The repository on the hub, while this process is the one of its host that downloads from it.
#[derive(Debug)]
struct Remote {
    files: ApiRepo,
    main: CacheRepo,
    commit: String,
    endpoint: String,
    _lock: FileLock,
}

impl Snapshot {
    /// Asks the hub for the newest revision. When it cannot be reached, what is cached serves, with a warning.
    pub(super) fn open(
        settings: &Settings,
        id: &str,
        repo_type: RepoType,
    ) -> Result<Self, HubError> {
        let repo = Repo::new(id.into(), repo_type);
        let main = Cache::new(settings.cache_dir.clone()).repo(repo.clone());
        let name = repo.url();
        if settings.offline {
            return Self::cached(settings, &repo, &main)?.ok_or_else(|| HubError::NotCached {
                repo: name,
                cache: settings.cache_dir.clone(),
            });
        }
        let lock_path = settings
            .cache_dir
            .join(".locks")
            .join(repo.folder_name())
            .join("tandem.lock");
        let task = format!("downloading {name}");
        let lock = FileLock::acquire(&lock_path, &task).map_err(|source| HubError::Io {
            action: "lock",
            path: lock_path,
            source,
        })?;
        let api = api(settings, &name)?;
        let info = match list(settings, &api.repo(repo.clone()), &name) {
            Ok(info) => info,
            Err(error @ HubError::Unreachable { .. }) => {
                let Some(cached) = Self::cached(settings, &repo, &main)? else {
                    return Err(error);
                };
                tracing::warn!("{error}; using what is cached of {name}");
                return Ok(cached);
            }
            Err(error) => return Err(error),
        };
        if !is_commit(&info.sha) {
            return Err(HubError::Download {
                repo: name,
                file: "main".into(),
                reason: format!(
                    "the hub says that it is at {:?}, which is no commit",
                    info.sha
                ),
            });
        }
        // By commit and not by branch, so that all files are of one revision even when the branch moves meanwhile.
        let remote = Remote {
            files: api.repo(Repo::with_revision(id.into(), repo_type, info.sha.clone())),
            main,
            commit: info.sha,
            endpoint: settings.endpoint.clone(),
            _lock: lock,
        };
        Ok(Self {
            name,
            dir: remote.main.pointer_path(&remote.commit),
            files: info
                .siblings
                .into_iter()
                .map(|file| file.rfilename)
                .collect(),
            remote: Some(Box::new(remote)),
        })
    }

    /// Paths of all files, relative to the repository.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The repository's name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether [`Self::files`] may lack files of the repository, because nobody was asked.
    pub(crate) fn is_cache_only(&self) -> bool {
        self.remote.is_none()
    }

    /// Whether the repository has this file.
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|known| known == file)
    }

    /// The local path of a file, which is downloaded if it is not cached.
    ///
    /// # Errors
    /// A file that is not cached and cannot be downloaded, or whose name leads out of the repository.
    pub fn bring(&self, file: &str, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        let is_plain = |part| matches!(part, Component::Normal(_));
        if !Path::new(file).components().all(is_plain) {
            return Err(HubError::Download {
                repo: self.name.clone(),
                file: file.into(),
                reason: "its name leads out of the repository".into(),
            });
        }
        let path = self.dir.join(file);
        if path.exists() {
            return Ok(path);
        }
        let Some(remote) = &self.remote else {
            return Err(HubError::FileNotCached {
                repo: self.name.clone(),
                file: file.into(),
            });
        };
        let failed = |reason: String| HubError::Download {
            repo: self.name.clone(),
            file: file.into(),
            reason,
        };
        let download = Download {
            progress,
            done: 0,
            total: 0,
        };
        remote
            .files
            .download_with_progress(file, download)
            .map_err(|error| match error.to_string() {
                // Everybody may see what there is; the files are another matter.
                text if text.contains("http status: 403") || text.contains("http status: 401") => {
                    gated(&remote.endpoint, &self.name)
                }
                text => failed(text),
            })?;
        if !path.exists() {
            return Err(failed("the hub sent another revision".into()));
        }
        Ok(path)
    }

    /// Makes this revision the one that the cache gives offline, once all that is needed of it is there. Returns its
    /// folder.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn commit(self) -> Result<PathBuf, HubError> {
        if let Some(remote) = &self.remote {
            remote
                .main
                .create_ref(&remote.commit)
                .map_err(|source| HubError::Io {
                    action: "write to the cache",
                    path: self.dir.clone(),
                    source,
                })?;
        }
        Ok(self.dir)
    }

    fn cached(
        settings: &Settings,
        repo: &Repo,
        main: &CacheRepo,
    ) -> Result<Option<Self>, HubError> {
        let refs = settings
            .cache_dir
            .join(repo.folder_name())
            .join("refs")
            .join(repo.revision());
        let Ok(commit) = read_small_text(&refs, LONGEST_REFERENCE) else {
            return Ok(None);
        };
        let commit = commit.trim();
        if !is_commit(commit) {
            return Ok(None);
        }
        let dir = main.pointer_path(commit);
        if !dir.is_dir() {
            return Ok(None);
        }
        let mut files = Vec::new();
        walk(&dir, "", &mut files).map_err(|source| HubError::Io {
            action: "list",
            path: dir.clone(),
            source,
        })?;
        Ok(Some(Self {
            name: repo.url(),
            dir,
            files,
            remote: None,
        }))
    }
}

/// Whether this can be the name of a commit. It becomes a part of paths, so it is not believed.
fn is_commit(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// What the hub calls a repository that is not for everybody.
const GATED: &str = "GatedRepo";

fn gated(endpoint: &str, name: &str) -> HubError {
    HubError::Gated {
        repo: name.into(),
        page: format!("{}/{name}", endpoint.trim_end_matches('/')),
    }
}

fn api(settings: &Settings, name: &str) -> Result<Api, HubError> {
    ApiBuilder::from_cache(Cache::new(settings.cache_dir.clone()))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
        .map_err(|error| HubError::Unreachable {
            endpoint: settings.endpoint.clone(),
            repo: name.into(),
            reason: error.to_string(),
        })
}

fn list(settings: &Settings, remote: &ApiRepo, name: &str) -> Result<RepoInfo, HubError> {
    let unreachable = |reason: String| HubError::Unreachable {
        endpoint: settings.endpoint.clone(),
        repo: name.into(),
        reason,
    };
    let request = remote
        .info_request()
        .config()
        .timeout_global(Some(LIST_TIMEOUT))
        .http_status_as_error(false)
        .build();
    let mut response = request
        .call()
        .map_err(|error| unreachable(error.to_string()))?;
    let status = response.status().as_u16();
    let code = response.headers().get("x-error-code");
    if status == 403 || code.is_some_and(|code| code == GATED) {
        return Err(gated(&settings.endpoint, name));
    }
    if !response.status().is_success() {
        return Err(HubError::Refused {
            endpoint: settings.endpoint.clone(),
            repo: name.into(),
            status,
        });
    }
    response
        .body_mut()
        .read_json()
        .map_err(|error| unreachable(format!("its answer is not understood: {error}")))
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Follows the links of which a snapshot consists; a link to a blob that is gone is no file.
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{name}/"), files)?;
        } else if entry.path().exists() {
            files.push(name);
        }
    }
    Ok(())
}

/// Passes the hub client's progress on.
struct Download<'a> {
    progress: &'a mut dyn Progress,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Download<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        (self.done, self.total) = (0, size as u64);
        self.progress.begin(filename);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.progress.update(self.done, self.total);
    }

    fn finish(&mut self) {}
}
