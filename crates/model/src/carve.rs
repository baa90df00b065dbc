//! Views of a flat buffer, one after another.

use tandem_tensor::Tensor;

/// Cuts a flat tensor from its front.
pub(crate) struct Carve<'a> {
    flat: &'a Tensor,
    next: i64,
}

impl<'a> Carve<'a> {
    pub(crate) fn new(flat: &'a Tensor) -> Self {
        Self { flat, next: 0 }
    }

    pub(crate) fn vector(&mut self, len: usize) -> Option<Tensor> {
        let len = len as i64;
        if self.next + len > self.flat.size()[0] {
            return None;
        }
        let view = self.flat.narrow(0, self.next, len);
        self.next += len;
        Some(view)
    }

    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Option<Tensor> {
        Some(
            self.vector(rows * columns)?
                .view([rows as i64, columns as i64]),
        )
    }

    /// `[count, rows, columns]`
    pub(crate) fn matrices(&mut self, count: usize, rows: usize, columns: usize) -> Option<Tensor> {
        let size = [count, rows, columns].map(|size| size as i64);
        Some(self.vector(count * rows * columns)?.view(size))
    }

    /// `Some(None)` where the tensor does not exist in this model.
    pub(crate) fn optional(&mut self, exists: bool, len: usize) -> Option<Option<Tensor>> {
        if exists {
            self.vector(len).map(Some)
        } else {
            Some(None)
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.next == self.flat.size()[0]
    }
}
