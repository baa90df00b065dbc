//! The variables of the environment that `huggingface_hub` documents, read once.

use std::env;
use std::fmt;
use std::path::PathBuf;

use tandem_files::read_small_text;

use super::error::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Bytes; a token has some forty.
const LONGEST_TOKEN: u64 = 1 << 12;

/// Where the hub and its cache are.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The hub, without a slash at the end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The cache's folder (`HF_HUB_CACHE`, else `hub` below `HF_HOME`, else `~/.cache/huggingface/hub`).
    pub cache_dir: PathBuf,
    /// Who asks (`HF_TOKEN`, else the file that `hf auth login` writes).
    pub token: Option<String>,
    /// Use what is cached, and contact nobody (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl Settings {
    /// The settings as the environment has them.
    ///
    /// # Errors
    /// A variable with a value that it cannot have.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// The settings as `variable` has them: a function from a variable's name to its value.
    ///
    /// # Errors
    /// A variable with a value that it cannot have.
    pub fn from_variables(
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, HubError> {
        // An empty variable is an unset one, as for most programs.
        let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(HubError::Setting {
                variable: "HF_ENDPOINT",
                value: endpoint,
                expected: "a URL that begins with http:// or https://",
            });
        }
        let home = variable("HF_HOME").map_or_else(
            || default_home(variable("XDG_CACHE_HOME"), variable("HOME")),
            PathBuf::from,
        );
        let cache_dir = variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| {
            let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            read_small_text(&path, LONGEST_TOKEN).ok()
        });
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache_dir,
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: switch("HF_HUB_OFFLINE", variable("HF_HUB_OFFLINE"))?,
        })
    }
}

/// Without the token, which must not get into a log.
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .finish()
    }
}

fn default_home(xdg_cache_home: Option<String>, home: Option<String>) -> PathBuf {
    let cache = xdg_cache_home.map_or_else(
        || PathBuf::from(home.unwrap_or_else(|| ".".into())).join(".cache"),
        PathBuf::from,
    );
    cache.join("huggingface")
}

fn switch(variable: &'static str, value: Option<String>) -> Result<bool, HubError> {
    let Some(value) = value else {
        return Ok(false);
    };
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(HubError::Setting {
            variable,
            value,
            expected: "1 or 0",
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_those_of_the_python_library() {
        let found = settings(&[("HOME", "/u"), ("HF_HUB_OFFLINE", "")]).unwrap();
        assert_eq!(found.endpoint, "https://huggingface.co");
        assert_eq!(found.cache_dir, PathBuf::from("/u/.cache/huggingface/hub"));
        assert_eq!((found.token, found.offline), (None, false));
        let found = settings(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]).unwrap();
        assert_eq!(found.cache_dir, PathBuf::from("/x/huggingface/hub"));
    }

    #[test]
    fn variables_are_honoured() {
        let found = settings(&[
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "http://mirror:80/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ])
        .unwrap();
        assert_eq!(found.endpoint, "http://mirror:80");
        assert_eq!(found.cache_dir, PathBuf::from("/hf/hub"));
        assert_eq!(found.token.as_deref(), Some("secret"));
        assert!(found.offline);
        assert!(!format!("{found:?}").contains("secret"));
        let found = settings(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/elsewhere")]).unwrap();
        assert_eq!(found.cache_dir, PathBuf::from("/elsewhere"));
    }

    #[test]
    fn the_token_of_a_login_is_found() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_login\n").unwrap();
        let home = home.path().to_str().unwrap();
        let found = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!(found.token.as_deref(), Some("hf_login"));
        let found = settings(&[("HF_HOME", home), ("HF_TOKEN", "mine")]).unwrap();
        assert_eq!(found.token.as_deref(), Some("mine"));
    }

    #[test]
    fn nonsense_is_refused() {
        for (variable, value) in [("HF_HUB_OFFLINE", "maybe"), ("HF_ENDPOINT", "mirror:80")] {
            let message = settings(&[(variable, value)]).unwrap_err().to_string();
            assert!(
                message.contains(variable) && message.contains(value),
                "{message}"
            );
        }
    }
}
