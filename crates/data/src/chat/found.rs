//! Where a model's chat template is.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_files::read_small_text;

use super::error::ChatError;
use super::size;

/// The name of the template that is used where nobody asks for another.
const DEFAULT: &str = "default";

/// The name of the template that is used for conversations with tools, where there is one.
const WITH_TOOLS: &str = "tool_use";

/// The most that the file around a template may have.
const MAX_BYTES: u64 = 16 << 20;

/// The text of templates, and the file that they are from.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) default: String,
    /// Another one for conversations with tools.
    pub(super) with_tools: Option<String>,
}

/// The template in `file` if one is named, else that of the tokenizer in `dir`. As for transformers, a file
/// `chat_template.jinja` comes before what tokenizer_config.json says.
pub(super) fn find(dir: &Path, file: Option<&Path>) -> Result<Found, ChatError> {
    let found = find_any(dir, file)?;
    let all = [Some(&found.default), found.with_tools.as_ref()];
    let problem = all
        .into_iter()
        .flatten()
        .find_map(|text| size::problem(text));
    if let Some(problem) = problem {
        return Err(ChatError::Invalid {
            path: found.path,
            reason: problem.into(),
        });
    }
    Ok(found)
}

fn find_any(dir: &Path, file: Option<&Path>) -> Result<Found, ChatError> {
    if let Some(path) = file {
        return alone(path.to_owned(), None);
    }
    let path = dir.join("chat_template.jinja");
    if path.is_file() {
        let more = dir
            .join("additional_chat_templates")
            .join(format!("{WITH_TOOLS}.jinja"));
        let with_tools = more.is_file().then(|| read(&more)).transpose()?;
        return alone(path, with_tools);
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let config: Value =
            serde_json::from_str(&read(&path)?).map_err(|error| ChatError::Invalid {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        match &config["chat_template"] {
            Value::Null => {}
            Value::String(text) => {
                return Ok(Found {
                    path,
                    default: text.clone(),
                    with_tools: None,
                });
            }
            Value::Array(list) => return of_list(path, list),
            _ => {
                let reason = "`chat_template` is neither text nor a list of templates".into();
                return Err(ChatError::Invalid { path, reason });
            }
        }
    }
    Err(ChatError::Missing { dir: dir.into() })
}

fn alone(path: PathBuf, with_tools: Option<String>) -> Result<Found, ChatError> {
    let default = read(&path)?;
    Ok(Found {
        path,
        default,
        with_tools,
    })
}

/// A list of `{"name": ..., "template": ...}`.
fn of_list(path: PathBuf, list: &[Value]) -> Result<Found, ChatError> {
    let mut named = Vec::new();
    for entry in list {
        let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else {
            let reason = "an entry of `chat_template` has no `name` or no `template`".into();
            return Err(ChatError::Invalid { path, reason });
        };
        named.push((name, text));
    }
    let text = |wanted| {
        let entry = named.iter().find(|(name, _)| *name == wanted);
        entry.map(|(_, text)| (*text).to_owned())
    };
    match text(DEFAULT) {
        Some(default) => Ok(Found {
            default,
            with_tools: text(WITH_TOOLS),
            path,
        }),
        None => Err(ChatError::NoDefault {
            names: named.iter().map(|(name, _)| (*name).to_owned()).collect(),
            path,
        }),
    }
}

fn read(path: &Path) -> Result<String, ChatError> {
    read_small_text(path, MAX_BYTES).map_err(|source| ChatError::Read {
        path: path.into(),
        source,
    })
}
