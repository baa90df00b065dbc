//! Reducing ranks' memory that is known by its addresses: in shared memory, in receive buffers and in tensors.

use half::{bf16, f16};
use tandem_kernels::reduce::{self, Reducible, Source};

use crate::collective::{Element, ReduceOp};

/// Reduces `elements` elements of every source, in their order, into every target.
///
/// # Safety
/// Every source is valid for reads, and every target for writes, of `elements` elements, aligned for them. Nobody else
/// writes to the sources, or touches the targets, meanwhile. A target is either exactly a source or apart from all of them,
/// and targets are apart from each other.
pub(crate) unsafe fn reduce<const N: usize>(
    element: Element,
    op: ReduceOp,
    sources: impl Iterator<Item = *const u8>,
    targets: [*mut u8; N],
    elements: usize,
) {
    if elements == 0 {
        // Pointers to nothing may be null.
        return;
    }
    // SAFETY: passed on from the caller; each arm uses the type that `element` stands for.
    unsafe {
        match element {
            Element::F32 => typed::<f32, N>(op, sources, targets, elements),
            Element::Bf16 => typed::<bf16, N>(op, sources, targets, elements),
            Element::F16 => typed::<f16, N>(op, sources, targets, elements),
            Element::F64 => typed::<f64, N>(op, sources, targets, elements),
            Element::I64 => typed::<i64, N>(op, sources, targets, elements),
            Element::I32 => typed::<i32, N>(op, sources, targets, elements),
            Element::U8 => typed::<u8, N>(op, sources, targets, elements),
        }
    }
}

/// # Safety
/// As [`reduce`], for elements of type `E`.
unsafe fn typed<E: Reducible, const N: usize>(
    op: ReduceOp,
    sources: impl Iterator<Item = *const u8>,
    targets: [*mut u8; N],
    elements: usize,
) {
    let in_place = |source| {
        let is_source = |target: &*mut u8| target.cast_const() == source;
        targets.iter().position(is_source)
    };
    let sources: Vec<Source<'_, E>> = sources
        .map(|source| match in_place(source) {
            Some(target) => Source::Target(target),
            // SAFETY: passed on from the caller: readable, aligned, apart from the targets, and nobody writes to it.
            None => Source::Slice(unsafe { std::slice::from_raw_parts(source.cast(), elements) }),
        })
        .collect();
    // SAFETY: passed on from the caller: writable, aligned, and nobody else touches it.
    let slice =
        |target: *mut u8| unsafe { std::slice::from_raw_parts_mut(target.cast::<E>(), elements) };
    reduce::reduce(op, &sources, &mut targets.map(slice));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks' elements as bytes, and the sum of each element.
    fn in_place_and_beside<E: Copy>(element: Element, parts: [[E; 2]; 2], expected: [E; 2]) {
        let bytes = |values: &[E; 2]| {
            // SAFETY: the elements in this test are plain numbers.
            unsafe {
                std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values))
                    .to_vec()
            }
        };
        for own in 0..2 {
            let (mut target, mut second) = (parts[own], parts[0]);
            let sources = [0, 1].map(|rank| match rank == own {
                // As in an all-reduce in place.
                true => target.as_ptr().cast::<u8>(),
                false => parts[rank].as_ptr().cast(),
            });
            let targets = [second.as_mut_ptr().cast(), target.as_mut_ptr().cast()];
            // SAFETY: all arrays have two elements, and one target is a source.
            unsafe { reduce(element, ReduceOp::Sum, sources.into_iter(), targets, 2) };
            assert_eq!(bytes(&target), bytes(&expected), "{element:?}");
            assert_eq!(bytes(&second), bytes(&expected), "{element:?}");
        }
    }

    #[test]
    fn every_kind_of_element_is_reduced_as_itself() {
        in_place_and_beside(Element::F32, [[1.5f32, 2.0], [3.0, -4.0]], [4.5, -2.0]);
        in_place_and_beside(Element::F64, [[1.5f64, 2.0], [3.0, -4.0]], [4.5, -2.0]);
        in_place_and_beside(Element::I64, [[i64::MAX, 2], [1, -4]], [i64::MIN, -2]);
        in_place_and_beside(Element::I32, [[i32::MAX, 2], [1, -4]], [i32::MIN, -2]);
        in_place_and_beside(Element::U8, [[200u8, 2], [100, 4]], [44, 6]);
        let (b, h) = (bf16::from_f32, f16::from_f32);
        let parts = [[b(1.5), b(2.0)], [b(3.0), b(-4.0)]];
        in_place_and_beside(Element::Bf16, parts, [b(4.5), b(-2.0)]);
        let parts = [[h(1.5), h(2.0)], [h(3.0), h(-4.0)]];
        in_place_and_beside(Element::F16, parts, [h(4.5), h(-2.0)]);
    }
}
