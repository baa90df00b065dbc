//! Matrices in parts of slices.

use half::bf16;

/// A matrix of bf16 that is read: element `(row, column)` is at `data[row * row_stride + column * column_stride]`, and one of
/// the strides is 1, as in every matrix and every transposed matrix.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    data: &'a [bf16],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// # Panics
    /// When neither stride is 1, or the last element is not in `data`.
    pub fn new(
        data: &'a [bf16],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        assert!(
            row_stride == 1 || column_stride == 1,
            "one of the strides {row_stride} and {column_stride} must be 1"
        );
        check_span(data.len(), (rows, row_stride), (columns, column_stride));
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Its rows as columns.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many there are.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the elements of a row lie one after another; those of a column do otherwise.
    pub(super) fn has_plain_rows(&self) -> bool {
        self.column_stride == 1
    }

    /// Where the element is; within `data` for one that exists.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, column: usize) -> *const i16 {
        let place = row * self.row_stride + column * self.column_stride;
        self.data.as_ptr().wrapping_add(place).cast()
    }
}

/// A matrix that is written: element `(row, column)` is at `data[row * row_stride + column]`.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// # Panics
    /// When rows overlap, or the last element is not in `data`.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            columns <= row_stride,
            "rows of {columns} elements are {row_stride} apart"
        );
        check_span(data.len(), (rows, row_stride), (columns, 1));
        Self {
            data,
            rows,
            columns,
            row_stride,
        }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }
}

/// Panics when the last element of a matrix with these dimensions, each a size and a stride, is not among `len`.
fn check_span(len: usize, rows: (usize, usize), columns: (usize, usize)) {
    let last = |(size, stride): (usize, usize)| size.checked_sub(1)?.checked_mul(stride);
    let is_empty = rows.0 == 0 || columns.0 == 0;
    let end = match (last(rows), last(columns)) {
        (Some(row), Some(column)) => row.checked_add(column),
        _ => None,
    };
    assert!(
        is_empty || end.is_some_and(|end| end < len),
        "a matrix [{}, {}] with strides {} and {} is not in {len} elements",
        rows.0,
        columns.0,
        rows.1,
        columns.1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_reaches_from_its_first_to_its_last_element() {
        let data = [bf16::ZERO; 17];
        let matrix = MatrixView::new(&data, 3, 5, 6, 1);
        assert_eq!((matrix.rows(), matrix.columns()), (3, 5));
        let transposed = matrix.transposed();
        assert_eq!((transposed.rows(), transposed.columns()), (5, 3));
        assert_eq!(transposed.at(4, 2), matrix.at(2, 4));
        assert_eq!(matrix.at(2, 4), data[16..].as_ptr().cast());
        MatrixView::new(&[], 0, 5, 5, 1);
        MatrixMut::<f32>::new(&mut [], 3, 0, 0);
    }

    #[test]
    #[should_panic(expected = "[3, 5] with strides 6 and 1 is not in 16 elements")]
    fn a_short_slice_is_noticed() {
        MatrixView::new(&[bf16::ZERO; 16], 3, 5, 6, 1);
    }

    #[test]
    #[should_panic(expected = "is not in 16 elements")]
    fn sizes_beyond_all_numbers_are_noticed() {
        MatrixView::new(&[bf16::ZERO; 16], usize::MAX, 2, usize::MAX / 2, 1);
    }

    #[test]
    #[should_panic(expected = "rows of 3 elements are 2 apart")]
    fn rows_that_overlap_are_noticed() {
        MatrixMut::new(&mut [0f32; 16], 2, 3, 2);
    }

    #[test]
    #[should_panic(expected = "must be 1")]
    fn strides_without_a_one_are_noticed() {
        MatrixView::new(&[bf16::ZERO; 16], 2, 2, 4, 2);
    }
}
