//! The memory that the ranks of a group share: layout and mapping.
//!
//! The segment is an anonymous file (memfd). It has no name in any file system, so nothing is left behind however its
//! users end, and a small `/dev/shm`, as containers have, does not limit it.
//!
//! ```text
//! page 0        arrivals | sleepers | nonce | one cache line per member: its arrivals, whether it closed
//! then, for each member, two slots, each: one cache line with the operation's signature, then data
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::collective::Signature;

/// Bytes of data in one slot. Large enough that meeting costs little beside copying, small enough that the slots of a
/// few ranks fit into a last-level cache.
pub(super) const SLOT_BYTES: usize = 1 << 20;

/// Shown in `/proc/*/maps`.
const NAME: &str = "tandem-comm";

const PAGE: usize = 4096;
const CACHE_LINE: usize = 64;
const MEMBERS_AT: usize = 3 * CACHE_LINE;

/// The part of the segment that all members write to.
#[repr(C)]
struct Head {
    arrivals: CacheLine,
    sleepers: CacheLine,
    nonce: AtomicU64,
}

/// A counter that shares its cache line with nothing.
#[repr(C, align(64))]
struct CacheLine(AtomicU32);

/// What one member says about itself.
#[repr(C, align(64))]
pub(super) struct MemberLine {
    /// How many times it arrived: who is late can be read from here.
    pub(super) arrivals: AtomicU32,
    /// 1 once it has closed the group.
    pub(super) closed: AtomicU32,
}

/// The signature of a member's operation, written before it arrives and read after all have.
#[repr(C, align(64))]
pub(super) struct SignatureLine([AtomicU64; Signature::WORDS]);

impl SignatureLine {
    pub(super) fn write(&self, words: [u64; Signature::WORDS]) {
        for (place, word) in self.0.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> [u64; Signature::WORDS] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed))
    }
}

/// A mapped segment.
pub(super) struct Segment {
    base: *mut u8,
    members: usize,
    /// Kept open by the member that created it, so that the others can open it through `/proc`.
    file: Option<OwnedFd>,
}

// SAFETY: the mapping stays where it is until drop. Its counters are atomics; its slots are reached through raw pointers
// only, by code that says why nobody else touches them at that time.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Creates the segment for `members` ranks and marks it with `nonce`.
    pub(super) fn create(members: usize, nonce: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        let len = Self::len_for(members);
        rustix::fs::ftruncate(&file, len as u64)?;
        // Memory that cannot be had is an error here and now, not a SIGBUS at first touch.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
        let base = map(&file, len)?;
        let segment = Self {
            base,
            members,
            file: Some(file),
        };
        segment.head().nonce.store(nonce, Ordering::Release);
        Ok(segment)
    }

    /// Opens the segment that the process `pid` has under the descriptor `fd`.
    ///
    /// This works just where memory can be shared: within one host and one process namespace. That it is really the
    /// file in question, and not that of an unrelated process with the same id in another namespace, is what the nonce
    /// proves.
    pub(super) fn open(pid: u32, fd: i32, members: usize, nonce: u64) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        // Opening whatever an unrelated process has there could have effects, so look first.
        let link = std::fs::read_link(&path)?;
        if !link
            .to_string_lossy()
            .starts_with(&format!("/memfd:{NAME}"))
        {
            return Err(io::Error::other("it is not the group's segment"));
        }
        let file = File::options().read(true).write(true).open(path)?;
        let len = Self::len_for(members);
        if file.metadata()?.len() != len as u64 {
            return Err(io::Error::other("it is not the group's segment"));
        }
        let base = map(&file, len)?;
        let segment = Self {
            base,
            members,
            file: None,
        };
        if segment.head().nonce.load(Ordering::Acquire) != nonce {
            return Err(io::Error::other("it is not the group's segment"));
        }
        Ok(segment)
    }

    /// The creator's descriptor, for [`Segment::open`] elsewhere.
    pub(super) fn fd(&self) -> Option<i32> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Once every member has it open, the creator's descriptor has served.
    pub(super) fn close_file(&mut self) {
        self.file = None;
    }

    /// Arrivals of all members together.
    pub(super) fn arrivals(&self) -> &AtomicU32 {
        &self.head().arrivals.0
    }

    /// Members that sleep on [`Segment::arrivals`].
    pub(super) fn sleepers(&self) -> &AtomicU32 {
        &self.head().sleepers.0
    }

    pub(super) fn member(&self, member: usize) -> &MemberLine {
        assert!(member < self.members);
        let offset = MEMBERS_AT + member * CACHE_LINE;
        // SAFETY: within the first pages by `slots_at`, aligned to a cache line, and only ever used as this type of
        // atomics, for which zeroed memory is valid.
        unsafe { &*self.base.add(offset).cast::<MemberLine>() }
    }

    /// The signature that goes with the slot `parity` of `member`.
    pub(super) fn signature(&self, member: usize, parity: usize) -> &SignatureLine {
        // SAFETY: the cache line in front of the slot's data; only ever used as this type of atomics.
        unsafe { &*self.slot(member, parity).sub(CACHE_LINE).cast() }
    }

    /// The first of [`SLOT_BYTES`] bytes, aligned to a cache line.
    pub(super) fn slot(&self, member: usize, parity: usize) -> *mut u8 {
        assert!(member < self.members && parity < 2);
        let offset = slots_at(self.members) + (member * 2 + parity) * SLOT_STRIDE + CACHE_LINE;
        // SAFETY: within the mapping, whose length is `len_for(members)`.
        unsafe { self.base.add(offset) }
    }

    fn head(&self) -> &Head {
        // SAFETY: the mapping starts at a page boundary and is longer than the head; only atomics, for which zeroed
        // memory is valid.
        unsafe { &*self.base.cast::<Head>() }
    }

    /// Bytes of a segment.
    pub(super) fn len_for(members: usize) -> usize {
        slots_at(members) + members * 2 * SLOT_STRIDE
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing borrows from it any more. Failure would only mean that it
        // stays mapped.
        let _unmapped =
            unsafe { rustix::mm::munmap(self.base.cast(), Self::len_for(self.members)) };
    }
}

const SLOT_STRIDE: usize = SLOT_BYTES + PAGE;

fn slots_at(members: usize) -> usize {
    (MEMBERS_AT + members * CACHE_LINE).next_multiple_of(PAGE)
}

fn map(file: &impl AsFd, len: usize) -> io::Result<*mut u8> {
    // Populated at once: page faults would otherwise make the first steps slower than the others.
    let flags = MapFlags::SHARED | MapFlags::POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that has this length.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
            file,
            0,
        )?
    };
    Ok(base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_show_the_same_memory_and_slots_do_not_overlap() {
        let created = Segment::create(3, 42).unwrap();
        let pid = std::process::id();
        let fd = created.fd().unwrap();
        let opened = Segment::open(pid, fd, 3, 42).unwrap();
        assert!(Segment::open(pid, fd, 3, 43).is_err(), "another nonce");
        assert!(Segment::open(pid, fd, 2, 42).is_err(), "another size");
        let mut last = 0;
        for member in 0..3 {
            for parity in 0..2 {
                let words = [1, 2, 3, (member * 2 + parity) as u64];
                created.signature(member, parity).write(words);
                assert_eq!(opened.signature(member, parity).read(), words);
                let start = created.slot(member, parity).addr() - created.base.addr();
                assert!(start >= last && start.is_multiple_of(CACHE_LINE));
                last = start + SLOT_BYTES;
                // SAFETY: both slots are within their mappings, and no other thread uses these.
                unsafe {
                    created.slot(member, parity).add(SLOT_BYTES - 1).write(7);
                    assert_eq!(opened.slot(member, parity).add(SLOT_BYTES - 1).read(), 7);
                }
            }
        }
        assert!(last <= Segment::len_for(3));
    }
}
