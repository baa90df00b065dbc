//! What a rank must know to meet the others.

use std::time::Duration;

use crate::error::CommError;
use crate::meet::secret::RunSecret;

/// Who this rank is and where it meets the others: torchrun's variables, and a few choices.
#[derive(Debug, Clone)]
pub struct WorldConfig {
    /// This process, `0..world_size` (`RANK`).
    pub rank: usize,
    /// All processes (`WORLD_SIZE`).
    pub world_size: usize,
    /// This process among those of its host (`LOCAL_RANK`).
    pub local_rank: usize,
    /// Processes of this host (`LOCAL_WORLD_SIZE`). They share its cores.
    pub local_world_size: usize,
    /// Host name or IPv4 or IPv6 address of rank 0 (`MASTER_ADDR`).
    pub master_addr: String,
    /// Port on which rank 0 listens (`MASTER_PORT`).
    pub master_port: u16,
    /// On rank 0, a descriptor of a socket that listens there already (`TANDEM_MASTER_FD`); it is taken over.
    pub master_fd: Option<i32>,
    /// What all ranks know, and nobody else: who cannot prove that is let in by none of them.
    pub secret: RunSecret,
    /// How long any rank may take to answer before the others give up.
    pub timeout: Duration,
    /// The interface whose address other hosts should use; otherwise the one on the way to rank 0.
    pub network_interface: Option<String>,
    /// How groups move data.
    pub transport: Transport,
}

/// How the members of a group move data. CUDA devices use NCCL unless this is [`Staged`](Self::Staged); the others are about
/// tensors in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Shared memory where the members can share it, otherwise TCP.
    #[default]
    Auto,
    /// Shared memory; an error where it cannot be had.
    Shm,
    /// TCP, even within one host.
    Tcp,
    /// From the device into host memory, from there over shared memory or TCP, and back: for ranks that share a GPU, and for
    /// hosts without NCCL. On CPUs it only copies.
    Staged,
}

impl WorldConfig {
    /// The error of a rank that could not meet the others.
    pub(crate) fn rendezvous_failed(&self, reason: String) -> CommError {
        CommError::Rendezvous {
            rank: self.rank,
            address: format!("{}:{}", self.master_addr, self.master_port),
            reason,
        }
    }
}
