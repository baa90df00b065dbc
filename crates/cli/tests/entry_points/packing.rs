//! Several documents a row, and several datasets a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::demo::{Run, losses, train};
use crate::tiny::Tiny;

/// Lines of 3 to 40 characters; 3 is less than any row of the tests, 40 more than the short ones.
fn lines(folder: &Path, name: &str, count: usize, first: usize) -> PathBuf {
    let words = "In the beginning God created the heaven and the earth. And";
    let text: String = (first..first + count)
        .map(|n| format!("{}\n", &words[n % 7..][..3 + n * 11 % 38]))
        .collect();
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn run(tiny: &Tiny, data: &Path, tp: usize, dp: usize) -> Run {
    let data = data.to_str().unwrap();
    let run = Run::new("fsdp", tp, dp).args(tiny.args());
    run.args(["--dataset_name", data, "--learning_rate", "1e-3"])
}

fn assert_near(label: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{label}");
    // fp32 sums in another order.
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 2e-5;
    assert!(
        found.iter().zip(expected).all(near),
        "{label}: {found:?} {expected:?}"
    );
}

/// A step of all documents has the same loss and the same update, however they lie in rows.
#[test]
fn packed_documents_train_as_documents_of_their_own() {
    let tiny = Tiny::new("qwen2_untied");
    let data = lines(&tiny.model(), "lines.txt", 12, 0);
    let all = [
        "--batch_size",
        "12",
        "--num_epochs",
        "3",
        "--seq_length",
        "64",
    ];
    let trained = |tp, dp, batch, extra: &[&str]| {
        let run = run(&tiny, &data, tp, dp)
            .args(all)
            .args(["--batch_size", batch]);
        let run = run.args(extra.iter().copied());
        losses(&run.succeed())
    };
    let alone = trained(1, 1, "12", &["--packing", "false"]);
    let packed = ["--packing_strategy", "bfd"];
    assert_near("one rank", &trained(1, 1, "12", &packed), &alone);
    let parallel = [&packed[..], &["--sequence_parallel", "true"]].concat();
    assert_near("2 x 2, by token", &trained(2, 2, "6", &parallel), &alone);
    let seen = [&packed[..], &["--document_mask", "false"]].concat();
    let seen = trained(1, 1, "12", &seen);
    assert!((seen[0] - alone[0]).abs() > 1e-3, "{seen:?} {alone:?}");
}

/// The order of rows is a function of seed and epoch; a run goes on in the middle of an epoch on another mesh.
#[test]
fn packed_rows_and_mixtures_go_on_with_the_exact_next_row() {
    let tiny = Tiny::new("qwen2_untied");
    let one = lines(&tiny.model(), "one.txt", 60, 0);
    let two = lines(&tiny.model(), "two.txt", 40, 60);
    let mixed = |tp, dp, batch| {
        let weighted = |path: &Path, weight| format!("{}@{weight}", path.display());
        let first = PathBuf::from(weighted(&one, "2"));
        run(&tiny, &first, tp, dp)
            .args([format!("--dataset_name={}", weighted(&two, "1"))])
            .args([
                "--packing_strategy",
                "bfd_split",
                "--num_epochs",
                "2",
                "--batch_size",
                batch,
            ])
    };
    let whole = mixed(2, 1, "4");
    let output = train(&whole).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    for words in [
        "one.txt: 60 documents, packed (bfd_split, ",
        "% padding), none sees another; ",
        " in an epoch (66.7% of it)",
        "in every epoch, by its weight",
    ] {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    let expected = losses(&whole.dir());
    let steps = expected.len();
    // In the middle of the second epoch.
    let stop = (steps * 3 / 4).to_string();
    let parts = mixed(1, 2, "2").args(["--max_steps", &stop]);
    parts.succeed();
    let rest = mixed(1, 1, "4").args(["--max_steps", &steps.to_string(), "--resume_from", "run"]);
    fs::rename(parts.dir(), rest.dir()).unwrap();
    assert_near("continued", &losses(&rest.succeed()), &expected);

    let other = mixed(1, 1, "4").args(["--packing_strategy", "bfd", "--resume_from", "run"]);
    fs::rename(rest.dir(), other.dir()).unwrap();
    let (code, text) = other.fail();
    assert_eq!(code, Some(2));
    assert!(
        text.contains("--packing_strategy is \"bfd\", and was \"bfd_split\""),
        "{text}"
    );
}

#[test]
fn a_preview_shows_documents_and_their_positions() {
    let tiny = Tiny::new("qwen2_untied");
    let one = lines(&tiny.model(), "one.txt", 12, 0);
    let two = lines(&tiny.model(), "two.txt", 12, 12);
    let preview = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        command.args(["data", "preview", "--seq_length", "64", "--model_name"]);
        command.arg(tiny.model()).arg("--dataset_name").arg(&one);
        let output = command.args(extra).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let both = [
        "--dataset_name",
        two.to_str().unwrap(),
        "--packing_strategy",
        "bfd",
    ];
    let rows = preview(&[&both[..], &["--json"]].concat());
    let mut documents = 0;
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let of = |name: &str| serde_json::from_value::<Vec<i64>>(row[name].clone()).unwrap();
        let (numbers, positions, labels) = (of("document_ids"), of("position_ids"), of("labels"));
        let mut position = 0;
        for at in 0..64 {
            let begins = at == 0 || numbers[at] != numbers[at - 1];
            position = if begins { 0 } else { position + 1 };
            match numbers[at] {
                -1 => assert_eq!((positions[at], labels[at]), (0, -100)),
                _ => {
                    assert_eq!(positions[at], position);
                    assert_eq!(labels[at] == -100, begins, "{row}");
                    documents += usize::from(begins);
                }
            }
        }
    }
    assert_eq!(documents, 24);

    let text = preview(&[&both[..], &["--rows", "1"]].concat());
    assert!(text.contains(" documents (│ between them), "), "{text}");
    assert!(
        text.contains("one.txt: 12 documents, packed (bfd, "),
        "{text}"
    );
    // As it was before there were others: documents see each other and are one.
    let row: Value = serde_json::from_str(preview(&["--json"]).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&row["position_ids"][63], &row["document_ids"][63]),
        (&63.into(), &0.into())
    );
}

#[test]
fn what_cannot_be_packed_or_mixed_is_said() {
    let tiny = Tiny::new("qwen2_untied");
    let data = lines(&tiny.model(), "lines.txt", 4, 0);
    let weighted = |weight: &str| format!("--dataset_name={}@{weight}", data.display());
    let (none, minus, one) = (weighted("0"), weighted("-1"), weighted("1"));
    let cases: [(&[&str], &str); 4] = [
        (
            &["--packing", "false", "--packing_strategy", "bfd"],
            "--packing is false",
        ),
        (&[&none], "the weight behind the @ must be a number above 0"),
        (
            &[&minus],
            "the weight behind the @ must be a number above 0",
        ),
        (&[&one], "has no weight, and"),
    ];
    for (extra, words) in cases {
        let (code, text) = run(&tiny, &data, 1, 1).args(extra.iter().copied()).fail();
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(words), "{words:?} is not in: {text}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        command
            .args(["data", "preview", "--model_name"])
            .arg(tiny.model());
        let output = command
            .arg("--dataset_name")
            .arg(&data)
            .args(extra)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
}
