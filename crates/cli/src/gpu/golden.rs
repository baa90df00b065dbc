//! What the program carries to train on: recorded cases, and the demo model with its tokenizer.

use std::path::{Path, PathBuf};

use tandem_run::failure::{Failure, Outcome};

/// A file, and what is in it.
type File = (&'static str, &'static [u8]);

/// A recorded case: what transformers computes, step by step (docs/parity.md).
pub(super) struct Case {
    pub name: &'static str,
    files: [File; 5],
}

macro_rules! case {
    ($name:literal) => {
        Case {
            name: $name,
            files: case!(@files $name "config.json" "model.safetensors" "batches.safetensors" "expected.safetensors" "trajectory.json"),
        }
    };
    (@files $name:literal $($file:literal)*) => {
        [$((
            $file,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests-data/golden/", $name, "/", $file)),
        )),*]
    };
}

/// Two of the smallest: a dense model with a tied head, and a mixture of experts.
pub(super) const CASES: [Case; 2] = [case!("qwen2_tied"), case!("qwen3_moe_aux")];

impl Case {
    /// Writes it under `folder`; returns its own folder.
    pub(super) fn unpack(&self, folder: &Path) -> Outcome<PathBuf> {
        unpack(&folder.join(self.name), &self.files)
    }
}

macro_rules! demo {
    ($file:literal) => {
        (
            $file,
            include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../demo/model/",
                $file
            )),
        )
    };
}

/// The demo's model: a description, without weights.
const MODEL: [File; 3] = [
    demo!("config.json"),
    demo!("tokenizer.json"),
    demo!("tokenizer_config.json"),
];

/// Some English text.
const TEXT: [File; 1] = [(
    "text.txt",
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE")),
)];

/// Writes the demo's model and some text under `folder`; returns their folders.
pub(super) fn unpack_demo(folder: &Path) -> Outcome<(PathBuf, PathBuf)> {
    let model = unpack(&folder.join("model"), &MODEL)?;
    Ok((model, unpack(&folder.join("data"), &TEXT)?))
}

fn unpack(folder: &Path, files: &[File]) -> Outcome<PathBuf> {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut files = files.iter();
        files.try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
    };
    write()
        .map_err(|error| Failure::other(format!("cannot write {}: {error}", folder.display())))?;
    Ok(folder.to_owned())
}
