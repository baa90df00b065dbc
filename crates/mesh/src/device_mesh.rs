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

/// Why a mesh cannot be built, or experts not spread over it.
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
    /// Experts cannot be spread over so many of its ranks.
    #[error(
        "--expert_parallel_size {size} does not divide the {ranks} ranks of tp_size x dp_size; groups of {size} ranks share the \
         experts out, and every rank is in one"
    )]
    ExpertGroups {
        /// Ranks over which experts are spread.
        size: usize,
        /// Ranks of the mesh.
        ranks: usize,
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

    /// Whether every rank can be in one of several groups of `size` ranks over which experts are spread.
    ///
    /// # Errors
    /// [`MeshError`] when a group would be empty or left incomplete.
    pub fn check_expert_groups(&self, size: usize) -> Result<(), MeshError> {
        if size == 0 {
            return Err(MeshError::ZeroSize {
                name: "expert_parallel_size",
            });
        }
        let ranks = self.world_size();
        match ranks.is_multiple_of(size) {
            true => Ok(()),
            false => Err(MeshError::ExpertGroups { size, ranks }),
        }
    }

    /// The ranks over which experts are spread, `size` neighbours, `rank` among them. A group may be a part of a row, or several
    /// rows, or neither.
    pub fn expert_group(&self, rank: usize, size: usize) -> Vec<usize> {
        let first = rank / size * size;
        (first..first + size).collect()
    }

    /// The ranks with the same experts as `rank`, where they are spread over `size` ranks: one of each group.
    pub fn expert_replicas(&self, rank: usize, size: usize) -> Vec<usize> {
        (rank % size..self.world_size()).step_by(size).collect()
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

    /// Over its group and its replicas, every rank has every expert, and each expert is where its replicas say.
    #[test]
    fn experts_are_spread_over_neighbours() {
        let mesh = DeviceMesh::new(3, 2).unwrap();
        assert_eq!(mesh.expert_group(3, 2), [2, 3]);
        assert_eq!(mesh.expert_replicas(3, 2), [1, 3, 5]);
        for size in [1, 2, 3, 6] {
            mesh.check_expert_groups(size).unwrap();
            for rank in 0..6 {
                let group = mesh.expert_group(rank, size);
                assert_eq!(group[rank % size], rank);
                for peer in mesh.expert_replicas(rank, size) {
                    assert_eq!(mesh.expert_group(peer, size)[rank % size], peer);
                }
            }
        }
        let error = mesh.check_expert_groups(4).unwrap_err().to_string();
        assert!(
            error.contains("--expert_parallel_size 4") && error.contains("6 ranks"),
            "{error}"
        );
        assert!(mesh.check_expert_groups(0).is_err());
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
