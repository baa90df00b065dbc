//! Memory of the device, which the host cannot touch, and pinned memory of the host, which it cannot touch while it is copied.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::order::{Access, Clock, History, Moment};
use crate::forbidden;

const PAGE: usize = 4096;
/// More than any test needs: whoever asks for it has miscounted.
const LARGEST: usize = 1 << 36;

/// Where a piece of memory belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Device,
    Pinned,
}

struct Piece {
    place: Place,
    bytes: usize,
    /// Where its bytes really are; the stand-in's own threads read and write there.
    backing: usize,
    history: History,
    /// Copies that the host has not waited for. While there are some, pinned memory is locked.
    unwaited: Vec<Moment>,
}

/// All memory that was handed out, by its address.
#[derive(Default)]
pub(super) struct Memory(BTreeMap<usize, Piece>);

impl Memory {
    /// The address of new memory; `None` where there is not as much.
    pub(super) fn take(&mut self, place: Place, bytes: usize) -> Option<usize> {
        if bytes == 0 || bytes > LARGEST {
            return None;
        }
        let len = bytes.next_multiple_of(PAGE);
        let (address, backing) = match place {
            Place::Device => (
                map(len, ProtFlags::empty())?,
                map(len, ProtFlags::READ | ProtFlags::WRITE)?,
            ),
            Place::Pinned => map_twice(len)?,
        };
        // SAFETY: mapped just now, as long as this, and nobody else knows of it. (All NaN in every kind of float.)
        unsafe { std::ptr::write_bytes(backing as *mut u8, 0xff, len) };
        let piece = Piece {
            place,
            bytes,
            backing,
            history: History::default(),
            unwaited: Vec::new(),
        };
        self.0.insert(address, piece);
        Some(address)
    }

    /// Takes memory back. False when there is none of this kind at the address.
    pub(super) fn give_back(&mut self, place: Place, address: usize, known: &Clock) -> bool {
        if self
            .0
            .get(&address)
            .is_none_or(|piece| piece.place != place)
        {
            return false;
        }
        let Some(piece) = self.0.remove(&address) else {
            return false;
        };
        if let Some(access) = piece.history.unknown(known) {
            forbidden(&format!(
                "memory is freed, but nobody has waited for {access}"
            ));
        }
        let len = piece.bytes.next_multiple_of(PAGE);
        for start in [address, piece.backing] {
            // SAFETY: mapped by `take`, with this length; the history says that no thread uses it any more.
            let _unmapped = unsafe { rustix::mm::munmap(start as *mut c_void, len) };
        }
        true
    }

    /// Where the bytes of a range really are; `None` when they are not all within one piece of memory.
    pub(super) fn backing(&self, range: &Range<usize>) -> Option<usize> {
        let (start, piece) = self.piece(range)?;
        Some(piece.backing + (range.start - start))
    }

    /// Whether the range is pinned memory.
    pub(super) fn is_pinned(&self, range: &Range<usize>) -> bool {
        self.piece(range)
            .is_some_and(|(_, piece)| piece.place == Place::Pinned)
    }

    fn piece(&self, range: &Range<usize>) -> Option<(usize, &Piece)> {
        let (start, piece) = self.0.range(..=range.start).next_back()?;
        (range.end <= start + piece.bytes).then_some((*start, piece))
    }

    /// Notes an access of a command, and ends the process where it is out of order.
    pub(super) fn access(&mut self, access: Access, clock: &Clock) {
        let start = access.range.start;
        let Some((address, piece)) = self.0.range_mut(..=start).next_back() else {
            return;
        };
        if piece.place == Place::Pinned {
            if piece.unwaited.is_empty() {
                protect(*address, piece.bytes, MprotectFlags::empty());
            }
            piece.unwaited.push(access.at);
        }
        let shown = access.clone();
        if let Some(earlier) = piece.history.add(access, clock) {
            forbidden(&format!(
                "{shown}, is not ordered after {earlier}: an event or a wait is missing"
            ));
        }
    }

    /// The host has waited for what `known` knows: it may touch pinned memory again.
    pub(super) fn waited(&mut self, known: &Clock) {
        for (address, piece) in &mut self.0 {
            if piece.unwaited.is_empty() {
                continue;
            }
            piece.unwaited.retain(|moment| !known.knows(*moment));
            if piece.unwaited.is_empty() {
                protect(
                    *address,
                    piece.bytes,
                    MprotectFlags::READ | MprotectFlags::WRITE,
                );
            }
        }
    }

    /// Forgets accesses that every thread knows to be done.
    pub(super) fn forget(&mut self, known: &Clock) {
        for piece in self.0.values_mut() {
            piece.history.forget(known);
        }
    }
}

fn map(len: usize, protection: ProtFlags) -> Option<usize> {
    // SAFETY: a new mapping, wherever the system likes.
    let mapped =
        unsafe { rustix::mm::mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE) };
    mapped.ok().map(|pointer| pointer as usize)
}

/// One piece of memory at two addresses, so that one can be locked while the other is in use.
fn map_twice(len: usize) -> Option<(usize, usize)> {
    let file = rustix::fs::memfd_create("simulated-gpu", MemfdFlags::CLOEXEC).ok()?;
    rustix::fs::ftruncate(&file, len as u64).ok()?;
    let map = || {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of a file that nobody else has, wherever the system likes.
        let mapped =
            unsafe { rustix::mm::mmap(null_mut(), len, protection, MapFlags::SHARED, &file, 0) };
        mapped.ok().map(|pointer| pointer as usize)
    };
    Some((map()?, map()?))
}

fn protect(address: usize, bytes: usize, flags: MprotectFlags) {
    let len = bytes.next_multiple_of(PAGE);
    // SAFETY: mapped by `take`, with this length. Who touches it while it is locked is who this is to find.
    let done = unsafe { rustix::mm::mprotect(address as *mut c_void, len, flags) };
    if let Err(error) = done {
        forbidden(&format!("pinned memory cannot be locked: {error}"));
    }
}
