//! This machine's measured matrix-multiply rate: the yardstick behind "fraction of peak".

use std::time::Instant;

use tandem_torch::{Device, Kind, Tensor};

use crate::device::synchronize;
use crate::linear;

/// Floating point operations per second of `[m, k] x [k, n]` products in `kind`, the best of `repeats` runs.
///
/// Measured with the libtorch threads that training uses, so ranks that share a host measure what they can get
/// when all of them call it at once.
pub fn measure(m: i64, k: i64, n: i64, kind: Kind, device: Device, repeats: usize) -> f64 {
    let options = (kind, device);
    let (a, b) = (Tensor::ones([m, k], options), Tensor::ones([n, k], options));
    let out = Tensor::empty([m, n], options);
    let run = || {
        let start = Instant::now();
        linear::forward_into(&out, &a, &b);
        synchronize(device);
        start.elapsed().as_secs_f64()
    };
    // The first run pays for code generation and page faults.
    run();
    let best = (0..repeats.max(1))
        .map(|_| run())
        .fold(f64::INFINITY, f64::min);
    (2 * m * k * n) as f64 / best
}
