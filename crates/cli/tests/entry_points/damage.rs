//! A checkpoint that is not what was written is noticed, by file and tensor, and the one before it can be taken.

use std::fs;
use std::path::{Path, PathBuf};

use crate::demo::{Run, losses};
use crate::saved;

/// Two checkpoints, after steps 2 and 4.
fn saved_twice() -> Run {
    let run = Run::new("fsdp", 2, 1).args(["--max_steps", "4", "--save_steps", "2"]);
    assert_eq!(saved::steps(&run.succeed()), [2, 4]);
    run
}

fn newest_folder(run: &Run) -> PathBuf {
    let all = saved::checkpoints(&run.dir());
    run.dir().join(&all.last().unwrap().name)
}

fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// One way to damage a checkpoint's folder, and what the message must say.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const DAMAGES: [Damage; 5] = [
    (
        "a flipped byte",
        |folder| flip_a_byte(&folder.join("shard-00001.safetensors")),
        &["shard-00001.safetensors", "of tensor", "hash"],
    ),
    (
        "a truncated shard",
        |folder| {
            let file = fs::File::options()
                .write(true)
                .open(folder.join("shard-00000.safetensors"));
            file.unwrap().set_len(100_000).unwrap();
        },
        &["shard-00000.safetensors", "100000 bytes instead of"],
    ),
    (
        "a deleted shard",
        |folder| fs::remove_file(folder.join("shard-00001.safetensors")).unwrap(),
        &["shard-00001.safetensors", "missing"],
    ),
    (
        "a changed manifest",
        |folder| flip_a_byte(&folder.join("manifest.json")),
        &["manifest.json", "damaged"],
    ),
    (
        "a manifest of a newer version",
        |folder| {
            let path = folder.join("commit.json");
            let text = fs::read_to_string(&path).unwrap();
            let newer = text.replace("\"format_version\":1", "\"format_version\":99");
            assert_ne!(newer, text);
            fs::write(path, newer).unwrap();
        },
        &["commit.json", "version 99"],
    ),
];

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_it_is_taken_on_request() {
    let whole = Run::new("fsdp", 2, 1).args(["--max_steps", "6"]);
    let whole = losses(&whole.succeed());
    for (what, damage, words) in DAMAGES {
        let run = saved_twice();
        let folder = newest_folder(&run);
        damage(&folder);
        let resumed = run.args(["--max_steps", "6", "--resume_from", "run"]);
        println!("{what}:");
        let (code, text) = resumed.fail();
        assert_eq!(code, Some(1), "{what}");
        let name = folder.file_name().unwrap().to_str().unwrap();
        for word in words.iter().chain(&[name, "--resume_fallback"]) {
            assert!(text.contains(word), "{what} lacks {word:?}: {text}");
        }
        let fallback = resumed.args(["--resume_fallback", "true"]);
        assert_eq!(losses(&fallback.succeed()), whole, "{what}");
        saved::assert_nothing_torn(&fallback.dir());
    }
}

#[test]
fn when_all_are_damaged_that_is_said() {
    let run = saved_twice();
    for entry in saved::checkpoints(&run.dir()) {
        flip_a_byte(&run.dir().join(entry.name).join("shard-00000.safetensors"));
    }
    let (code, text) = run
        .args([
            "--resume_from",
            "run",
            "--resume_fallback",
            "--max_steps",
            "6",
        ])
        .fail();
    assert_eq!(code, Some(1));
    assert!(text.contains("none of the 2 checkpoints"), "{text}");
}
