//! Working memory that begins at a cache line.
//!
//! A vector that lies in parts of two lines takes two accesses in place of one; where few products are summed before they are stored,
//! as in attention, that is most of what storing costs.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// As much as a cache line has, or a vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; Line::BYTES]);

impl Line {
    const BYTES: usize = 64;
    const ZERO: Self = Self([0; Self::BYTES]);

    /// Lines that `len` numbers take.
    fn count<T>(len: usize) -> usize {
        len.div_ceil(Self::BYTES / size_of::<T>())
    }
}

/// Numbers of which a line has a whole number.
///
/// # Safety
/// Any bits are a number.
pub(crate) unsafe trait Number: Copy {}
// SAFETY: any bits are a number, here and in the next.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}
// SAFETY: it is 16 bits, of which all are a number.
unsafe impl Number for half::bf16 {}

/// A vector that begins at a cache line.
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Number> Default for Aligned<T> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<T: Number> Aligned<T> {
    /// None, and room for `len`.
    pub(crate) fn with_capacity(len: usize) -> Self {
        Self {
            lines: Vec::with_capacity(Line::count::<T>(len)),
            len: 0,
            of: PhantomData,
        }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self {
            lines: vec![Line::ZERO; Line::count::<T>(len)],
            len,
            of: PhantomData,
        }
    }

    /// Room for `len` in place of all before. Nothing fills it: large panels would cost as much to clear as to pack.
    pub(crate) fn room(&mut self, len: usize) -> &mut [MaybeUninit<T>] {
        self.len = 0;
        self.lines.clear();
        self.lines.reserve(Line::count::<T>(len));
        // SAFETY: so many lines have room for this many numbers, whose alignment is less, and are borrowed as long as the result.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }

    /// The first of those that there is room for, set or not.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.lines.as_mut_ptr().cast()
    }

    /// # Safety
    /// The first `len` of the [`Self::room`] have been written.
    pub(crate) unsafe fn set_len(&mut self, len: usize) {
        self.len = len;
    }
}

impl<T: Number> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many were written, by zeros or by who set the length.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; any bits are a number.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn everything_begins_at_a_line() {
        let mut numbers = Aligned::<u32>::default();
        assert!(numbers.is_empty());
        for len in [1usize, 16, 17, 1000, 5] {
            let room = numbers.room(len);
            assert!(room.len() == len && room.as_ptr().addr().is_multiple_of(Line::BYTES));
            for (i, place) in room.iter_mut().enumerate() {
                place.write(i as u32);
            }
            // SAFETY: all were written.
            unsafe { numbers.set_len(len) };
            assert!(numbers.iter().copied().eq(0..len as u32));
        }
        for len in [0, 31, 33] {
            let mut zeros = Aligned::<bf16>::zeros(len);
            assert!(zeros.as_ptr().addr().is_multiple_of(Line::BYTES));
            assert_eq!(*zeros, vec![bf16::ZERO; len]);
            zeros.fill(bf16::ONE);
            assert_eq!(*zeros, vec![bf16::ONE; len]);
        }
    }
}
