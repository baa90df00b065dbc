//! The 2D mesh: tensor parallel rows, data parallel columns.

use serde::{Deserialize, Serialize};

/// A `tp_size x dp_size` mesh of ranks, `rank = dp_rank * tp_size + tp_rank`.
///
/// Neighbouring ranks share a row, so a tensor parallel group (which talks several times per layer) lands on
/// one host whenever launchers number ranks host by host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceMesh {
    tp_size: usize,
    dp_size: usize,
}

/// Where one rank sits in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coords {
    /// Position inside the row: which slice of every sharded weight this rank holds.
    pub tp_rank: usize,
    /// Position inside the column: which slice of the global batch this rank sees.
    pub dp_rank: usize,
}

/// Why a mesh cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// A size is zero.
    #[error("{name} is 0; it must be at least 1")]
    ZeroSize {
        /// The flag's name.
        name: &'static str,
    },
    /// The two axes do not multiply to the number of workers.
    #[error(
        "tp_size x dp_size = {tp_size} x {dp_size} = {product}, but num_workers is {num_workers}; \
         set --num_workers {product}, or change --tp_size or --dp_size"
    )]
    SizeMismatch {
        /// Ranks in a row.
        tp_size: usize,
        /// Ranks in a column.
        dp_size: usize,
        /// `tp_size * dp_size`.
        product: usize,
        /// Workers asked for.
        num_workers: usize,
    },
}

impl DeviceMesh {
    /// A mesh of `tp_size * dp_size` ranks.
    ///
    /// # Errors
    /// [`MeshError::ZeroSize`] when an axis is empty.
    pub fn new(tp_size: usize, dp_size: usize) -> Result<Self, MeshError> {
        for (name, size) in [("tp_size", tp_size), ("dp_size", dp_size)] {
            if size == 0 {
                return Err(MeshError::ZeroSize { name });
            }
        }
        Ok(Self { tp_size, dp_size })
    }

    /// The mesh of a run started with `num_workers` workers.
    ///
    /// # Errors
    /// [`MeshError`] when a size is zero or the axes do not multiply to `num_workers`.
    pub fn for_workers(
        tp_size: usize,
        dp_size: usize,
        num_workers: usize,
    ) -> Result<Self, MeshError> {
        let mesh = Self::new(tp_size, dp_size)?;
        if num_workers == 0 {
            return Err(MeshError::ZeroSize {
                name: "num_workers",
            });
        }
        let product = tp_size.saturating_mul(dp_size);
        if product != num_workers {
            return Err(MeshError::SizeMismatch {
                tp_size,
                dp_size,
                product,
                num_workers,
            });
        }
        Ok(mesh)
    }

    /// Ranks in a row.
    pub fn tp_size(&self) -> usize {
        self.tp_size
    }

    /// Ranks in a column.
    pub fn dp_size(&self) -> usize {
        self.dp_size
    }

    /// All ranks of the mesh.
    pub fn world_size(&self) -> usize {
        self.tp_size * self.dp_size
    }

    /// Where `rank` sits.
    ///
    /// # Panics
    /// When `rank` is outside the mesh: ranks come from a validated environment.
    pub fn coords(&self, rank: usize) -> Coords {
        assert!(
            rank < self.world_size(),
            "rank {rank} is outside a mesh of {} ranks",
            self.world_size()
        );
        Coords {
            tp_rank: rank % self.tp_size,
            dp_rank: rank / self.tp_size,
        }
    }

    /// The rank at `coords`.
    pub fn rank(&self, coords: Coords) -> usize {
        coords.dp_rank * self.tp_size + coords.tp_rank
    }

    /// The row of `rank`, in tp_rank order.
    pub fn tp_group(&self, rank: usize) -> Vec<usize> {
        let row = self.coords(rank).dp_rank;
        (0..self.tp_size)
            .map(|tp_rank| row * self.tp_size + tp_rank)
            .collect()
    }

    /// The column of `rank`, in dp_rank order.
    pub fn dp_group(&self, rank: usize) -> Vec<usize> {
        let column = self.coords(rank).tp_rank;
        (0..self.dp_size)
            .map(|dp_rank| dp_rank * self.tp_size + column)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_tp_groups_and_columns_are_dp_groups() {
        let mesh = DeviceMesh::for_workers(2, 2, 4).unwrap();
        assert_eq!(mesh.tp_group(0), [0, 1]);
        assert_eq!(mesh.tp_group(3), [2, 3]);
        assert_eq!(mesh.dp_group(0), [0, 2]);
        assert_eq!(mesh.dp_group(3), [1, 3]);
        for rank in 0..4 {
            assert_eq!(mesh.rank(mesh.coords(rank)), rank);
        }
    }

    #[test]
    fn impossible_meshes_say_what_to_change() {
        let error = DeviceMesh::for_workers(2, 2, 3).unwrap_err().to_string();
        assert!(error.contains("--num_workers 4"), "{error}");
        assert_eq!(
            DeviceMesh::new(0, 1),
            Err(MeshError::ZeroSize { name: "tp_size" })
        );
        assert_eq!(
            DeviceMesh::for_workers(1, 1, 0),
            Err(MeshError::ZeroSize {
                name: "num_workers"
            })
        );
    }
}
