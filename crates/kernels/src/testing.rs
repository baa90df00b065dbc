//! What the tests of this crate share: numbers, and comparisons with fp64.

use crate::element::Element;

/// Normal numbers that depend on `seed` only.
pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    crate::random::fill_normal(&mut values, seed, "test", 0, 1.0);
    values
}

/// [`normal`] in the kind `T`, times `factor`.
pub fn numbers<T: Element>(len: usize, seed: u64, factor: f32) -> Vec<T> {
    let values = normal(len, seed).into_iter();
    values.map(|x| T::round(x * factor)).collect()
}

/// As many NaNs: memory that a kernel has to fill.
pub fn unfilled<T: Element>(len: usize) -> Vec<T> {
    vec![T::round(f32::NAN); len]
}

/// In fp64.
pub fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.widen())).collect()
}

/// The bits of `values`, for comparisons in which a NaN equals itself and zeros have signs.
pub fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|x| x.widen().to_bits()).collect()
}

/// Fails when lengths differ or an element differs by more than `tolerance`, absolutely and relatively.
pub fn assert_close<T: Element>(label: &str, actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{label}: lengths differ");
    for (i, (a, &e)) in actual.iter().zip(expected).enumerate() {
        let a = f64::from(a.widen());
        // Infinities are equal or not; NaN is never close.
        let close = a == e || (a - e).abs() - e.abs() * tolerance <= tolerance;
        assert!(
            close,
            "{label}: element {i} is {a:e}, not {e:e} within {tolerance:e}"
        );
    }
}
