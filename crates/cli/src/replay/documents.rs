//! The documents of packed rows.

use std::path::Path;

use tandem_run::failure::{Failure, Outcome};

use super::integers::{has, read_integers};

/// Where the documents of each row of `batches.safetensors` begin; without `document_ids`, every row is one. `shape` is
/// `[steps, rows, seq]`.
pub fn starts(path: &Path, shape: [usize; 3]) -> Outcome<Vec<Vec<u32>>> {
    let [steps, rows, seq] = shape;
    if !has(path, "document_ids")? {
        return Ok(vec![vec![0]; steps * rows]);
    }
    let [documents, positions] = read_integers(path, ["document_ids", "position_ids"])?;
    let of_rows = documents
        .values
        .chunks(seq)
        .zip(positions.values.chunks(seq));
    if [&documents, &positions]
        .iter()
        .any(|tensor| tensor.shape != shape)
    {
        return Err(refused(
            path,
            &format!("document_ids and position_ids must be {shape:?}"),
        ));
    }
    of_rows
        .enumerate()
        .map(|(row, (documents, positions))| {
            of_row(documents, positions).ok_or_else(|| {
                let problem = "document_ids must count documents from 0, with -1 in padding, and position_ids must count \
                               the tokens of each";
                refused(path, &format!("row {row}: {problem}"))
            })
        })
        .collect()
}

fn refused(path: &Path, problem: &str) -> Failure {
    Failure::other(format!("{}: {problem}", path.display()))
}

/// `None` where they do not follow each other. Positions within a document are not used: attention needs their differences
/// only, which are those of the positions in the row.
fn of_row(documents: &[i64], positions: &[i64]) -> Option<Vec<u32>> {
    let mut starts = Vec::new();
    let padding = documents.iter().position(|&document| document < 0);
    let tokens = padding.unwrap_or(documents.len());
    for (place, (&document, &position)) in documents[..tokens].iter().zip(positions).enumerate() {
        if document == starts.len() as i64 {
            starts.push(place as u32);
        }
        let start = *starts.last()? as usize;
        if document + 1 != starts.len() as i64 || position != (place - start) as i64 {
            return None;
        }
    }
    if documents[tokens..].iter().any(|&document| document != -1) {
        return None;
    }
    if starts.is_empty() {
        starts.push(0);
    }
    Some(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_where_their_number_changes() {
        let starts = of_row(&[0, 0, 1, 2, 2, -1, -1], &[0, 1, 0, 0, 1, 0, 0]);
        assert_eq!(starts, Some(vec![0, 2, 3]));
        assert_eq!(of_row(&[-1, -1], &[0, 0]), Some(vec![0]));
        for (documents, positions) in [
            ([0, 0, 2], [0, 1, 0]),
            ([0, 1, 0], [0, 0, 0]),
            ([1, 1, 2], [0, 1, 0]),
            ([0, -1, 1], [0, 0, 0]),
            ([0, -2, -1], [0, 0, 0]),
            ([0, 0, 1], [0, 1, 2]),
        ] {
            assert_eq!(of_row(&documents, &positions), None, "{documents:?}");
        }
    }
}
