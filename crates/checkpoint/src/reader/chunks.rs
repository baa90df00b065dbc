//! Which chunks of which pieces hold the elements of a slice.

use tandem_mesh::{Run, ShardSlice};

use super::{ELEMENT_BYTES, ReadRequest};
use crate::manifest::{Manifest, PieceRecord, TensorRecord};

/// Requests are cut into parts of at most this many elements, so that several threads can share a large one.
const PART_ELEMENTS: usize = 16 << 20;

/// A chunk of a piece, and what of it is wanted.
pub(super) struct ChunkRead<'a> {
    pub piece: &'a PieceRecord,
    /// Number of the chunk in the piece.
    pub index: usize,
    /// From the chunk's elements to those of the buffer.
    pub runs: Vec<Run>,
}

/// The chunks to read for `slice`, piece by piece.
pub(super) fn chunks_of<'a>(
    record: &TensorRecord,
    pieces: &'a [PieceRecord],
    chunk_bytes: u64,
    slice: &ShardSlice,
) -> Vec<ChunkRead<'a>> {
    let chunk_len = chunk_bytes as usize / ELEMENT_BYTES;
    let mut work: Vec<ChunkRead<'_>> = Vec::new();
    for piece in pieces {
        let first_of_piece = work.len();
        for mut run in slice.copies_from(&Manifest::slice(record, piece)) {
            while run.len > 0 {
                let index = run.source / chunk_len;
                let source = run.source % chunk_len;
                let len = run.len.min(chunk_len - source);
                let part = Run {
                    source,
                    target: run.target,
                    len,
                };
                match work[first_of_piece..].last_mut() {
                    Some(chunk) if chunk.index == index => chunk.runs.push(part),
                    _ => work.push(ChunkRead {
                        piece,
                        index,
                        runs: vec![part],
                    }),
                }
                run = Run {
                    source: run.source + len,
                    target: run.target + len,
                    len: run.len - len,
                };
            }
        }
    }
    work
}

/// The request in parts that can be read independently.
pub(super) fn in_parts(request: ReadRequest<'_>) -> impl Iterator<Item = ReadRequest<'_>> {
    let ReadRequest {
        tensor,
        role,
        slice,
        out,
    } = request;
    let parts = out.len().div_ceil(PART_ELEMENTS).max(1);
    // An empty request is one part all the same, so that what it asks for is checked.
    let mut rest = Some(out);
    (0..parts).map(move |part| {
        let out = rest.take().unwrap_or_default();
        let (now, later) = out.split_at_mut(out.len().min(PART_ELEMENTS));
        rest = Some(later);
        let start = slice.flat.start + part * PART_ELEMENTS;
        ReadRequest {
            tensor,
            role: role.clone(),
            slice: slice.clone().with_flat(start..start + now.len()),
            out: now,
        }
    })
}
