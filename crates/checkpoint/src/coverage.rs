//! Whether pieces make a whole: every element once.

use tandem_mesh::ShardSlice;
use thiserror::Error;

use crate::piece::Role;

/// A tensor that is not covered exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{role} of tensor {tensor:?}: {problem}")]
pub struct CoverageError {
    /// The tensor.
    pub tensor: String,
    /// What of it.
    pub role: Role,
    /// What is wrong.
    pub problem: CoverageProblem,
}

/// How pieces can fail to make a whole. Elements are counted in the flattened tensor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CoverageProblem {
    /// Nobody wrote these elements.
    #[error("no rank wrote elements {begin} to {end}")]
    Gap {
        /// First element.
        begin: usize,
        /// The element behind the last.
        end: usize,
    },
    /// Two pieces have the same elements.
    #[error("{first} and {second} both wrote elements {begin} to {end}")]
    Overlap {
        /// First element.
        begin: usize,
        /// The element behind the last.
        end: usize,
        /// Who wrote one piece.
        first: String,
        /// Who wrote the other.
        second: String,
    },
    /// A piece belongs to a tensor of another shape.
    #[error("{writer} wrote a slice of shape {found:?}, but the tensor has shape {expected:?}")]
    Shape {
        /// Who wrote it.
        writer: String,
        /// The tensor's shape.
        expected: Vec<usize>,
        /// The shape that the piece is a slice of.
        found: Vec<usize>,
    },
    /// Nobody should have written this.
    #[error("{writer} wrote it, but the run has no such state")]
    Unexpected {
        /// Who wrote it.
        writer: String,
    },
}

/// Checks that `pieces`, each with its writer's name, hold every element of a tensor of `shape` exactly once.
pub(crate) fn check(
    shape: &[usize],
    pieces: &[(String, &ShardSlice)],
) -> Result<(), CoverageProblem> {
    let mut intervals = Vec::new();
    for (writer, (name, slice)) in pieces.iter().enumerate() {
        if slice.global_shape != shape {
            return Err(CoverageProblem::Shape {
                writer: name.clone(),
                expected: shape.to_vec(),
                found: slice.global_shape.clone(),
            });
        }
        let runs = slice.runs();
        intervals.extend(
            runs.iter()
                .map(|run| (run.source, run.source + run.len, writer)),
        );
    }
    intervals.sort_unstable();
    let mut covered = 0;
    let mut last_writer = 0;
    for (begin, end, writer) in intervals {
        if begin > covered {
            return Err(CoverageProblem::Gap {
                begin: covered,
                end: begin,
            });
        }
        if begin < covered {
            return Err(CoverageProblem::Overlap {
                begin,
                end: covered.min(end),
                first: pieces[last_writer].0.clone(),
                second: pieces[writer].0.clone(),
            });
        }
        (covered, last_writer) = (end, writer);
    }
    let elements = shape.iter().product();
    if covered < elements {
        return Err(CoverageProblem::Gap {
            begin: covered,
            end: elements,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(slices: &[ShardSlice]) -> Result<(), CoverageProblem> {
        let pieces: Vec<_> = slices
            .iter()
            .zip(0..)
            .map(|(slice, rank)| (format!("rank {rank}"), slice))
            .collect();
        check(&[4, 6], &pieces)
    }

    #[test]
    fn a_whole_is_a_whole_however_it_is_cut() {
        let columns = |range| ShardSlice::narrow(&[4, 6], 1, range);
        checked(&[ShardSlice::whole(&[4, 6])]).unwrap();
        checked(&[columns(3..6), columns(0..3)]).unwrap();
        let (left, right) = (
            columns(0..5).with_flat(0..7),
            columns(0..5).with_flat(7..20),
        );
        checked(&[left.clone(), columns(5..6), right]).unwrap();
        assert_eq!(
            checked(&[left, columns(5..6)]),
            Err(CoverageProblem::Gap { begin: 8, end: 11 })
        );
        assert_eq!(
            checked(&[columns(0..3)]),
            Err(CoverageProblem::Gap { begin: 3, end: 6 })
        );
        let error = checked(&[columns(0..4), columns(3..6)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rank 0 and rank 1 both wrote elements 3 to 4"
        );
        assert!(checked(&[]).is_err());
        assert!(matches!(
            checked(&[ShardSlice::whole(&[6, 4])]),
            Err(CoverageProblem::Shape { .. })
        ));
        assert!(check(&[0, 3], &[]).is_ok());
    }
}
