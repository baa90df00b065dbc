//! The mesh, of which the command line may give a part: the rest follows.

use serde_json::{Map, Value};

use super::Line;

/// The row that asks for a mesh to be chosen.
pub const AUTO: &str = "auto";

/// Changes the mesh in `file` so that it fits what `line` gives of it: with other workers, rows follow; with another row or
/// column, workers do.
///
/// # Errors
/// Numbers that do not fit, in words.
pub fn follow(line: &Line, file: &mut Map<String, Value>) -> Result<(), String> {
    if line.value("tp_size").as_deref() == Some(AUTO) {
        // The mesh of the file is no longer meant.
        for flag in ["tp_size", "dp_size"] {
            file.remove(flag);
        }
        return Ok(());
    }
    let given = ["tp_size", "dp_size", "num_workers"].map(|flag| line.number(flag));
    let Some(old_tp) = file.get("tp_size").and_then(Value::as_u64) else {
        return Ok(());
    };
    let old_dp = file.get("dp_size").map_or(Some(1), Value::as_u64);
    let Some(old_dp) = old_dp else {
        return Ok(());
    };
    let (tp, dp, workers) = match given {
        [None, None, None] | [Some(_), Some(_), Some(_)] => return Ok(()),
        [tp, dp, None] => {
            let (tp, dp) = (tp.unwrap_or(old_tp), dp.unwrap_or(old_dp));
            (tp, dp, tp.saturating_mul(dp))
        }
        [tp, None, Some(workers)] => {
            let tp = tp.unwrap_or(old_tp);
            (tp, quotient(workers, tp, "tp_size", "dp_size")?, workers)
        }
        [None, Some(dp), Some(workers)] => {
            (quotient(workers, dp, "dp_size", "tp_size")?, dp, workers)
        }
    };
    for (flag, value) in [("tp_size", tp), ("dp_size", dp), ("num_workers", workers)] {
        file.insert(flag.to_owned(), value.into());
    }
    Ok(())
}

fn quotient(workers: u64, by: u64, divisor: &str, follows: &str) -> Result<u64, String> {
    match workers.checked_rem(by) {
        Some(0) if workers > 0 => Ok(workers / by),
        _ => Err(format!(
            "--num_workers {workers} cannot be cut into {divisor} {by} x {follows}; pass a multiple of {by}, or another --{divisor}"
        )),
    }
}

/// Completes a mesh as DeepSpeed does, which knows workers and the size of a row; `of_run` has what `line` leaves out, if a run
/// goes on. Returns the size of a column; nothing where the numbers do not fit, which is for others to say.
pub fn of_deepspeed(line: &mut Line, of_run: &Map<String, Value>) -> Option<u64> {
    let size = |line: &Line, flag: &str| {
        let of_run = || of_run.get(flag).and_then(Value::as_u64);
        line.number(flag).or_else(of_run)
    };
    let tp = size(line, "tp_size")?;
    let dp = match (size(line, "dp_size"), size(line, "num_workers")) {
        (Some(dp), _) => dp,
        (None, Some(workers)) if tp > 0 && workers.is_multiple_of(tp) => workers / tp,
        (None, _) => 1,
    };
    for (flag, value) in [("dp_size", dp), ("num_workers", tp.saturating_mul(dp))] {
        if size(line, flag).is_none() {
            line.add(flag, &value.into());
        }
    }
    Some(dp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn followed(words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(Into::into).collect();
        let file = json!({"tp_size": 2, "dp_size": 2, "num_workers": 4});
        let mut file = file.as_object().unwrap().clone();
        follow(&Line::new(&words), &mut file)?;
        Ok(json!([
            file["tp_size"],
            file["dp_size"],
            file["num_workers"]
        ]))
    }

    #[test]
    fn what_is_not_given_follows() {
        for (words, expected) in [
            (&[][..], [2, 2, 4]),
            (&["--tp_size=4"], [4, 2, 8]),
            (&["--dp_size=1"], [2, 1, 2]),
            (&["--num_workers=8"], [2, 4, 8]),
            (&["--tp_size=4", "--num_workers=4"], [4, 1, 4]),
            (&["--dp_size=4", "--num_workers=4"], [1, 4, 4]),
            (&["--tp_size=1", "--dp_size=1"], [1, 1, 1]),
        ] {
            assert_eq!(followed(words).unwrap(), json!(expected), "{words:?}");
        }
        for words in [
            &["--num_workers=3"][..],
            &["--tp_size=3", "--num_workers=4"],
        ] {
            let problem = followed(words).unwrap_err();
            assert!(
                problem.contains("--num_workers") && problem.contains("multiple"),
                "{problem}"
            );
        }
        assert!(followed(&["--num_workers=0"]).is_err());
    }

    #[test]
    fn deepspeed_knows_workers_and_rows() {
        let complete = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(Into::into).collect();
            let mut line = Line::new(&words);
            let dp = of_deepspeed(&mut line, &Map::new());
            (dp, line.number("num_workers"))
        };
        assert_eq!(
            complete(&["--tp_size=2", "--num_workers=4"]),
            (Some(2), Some(4))
        );
        assert_eq!(
            complete(&["--tp_size=2", "--dp_size=3"]),
            (Some(3), Some(6))
        );
        assert_eq!(complete(&["--tp_size=2"]), (Some(1), Some(2)));
        assert_eq!(complete(&[]), (None, None));
    }
}
