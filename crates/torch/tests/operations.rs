//! Every operation against the same arithmetic on the host, with whatever libtorch is found here.

use tandem_torch::{Device, Kind, Scalar, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// `[3, 4]`: numbers of both signs, none of them 0.
fn matrix() -> (Tensor, Vec<f64>) {
    let values: Vec<f64> = (0..12).map(|i| f64::from(i) * 0.5 - 2.75).collect();
    let floats: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    (Tensor::from_slice(&floats).view([3, 4]), values)
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: impl IntoIterator<Item = f64>) {
    let actual: Vec<f64> = actual.to_vec();
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(&expected) {
        assert!(
            (a - e).abs() <= 1e-5 * (1.0 + e.abs()),
            "{actual:?} is not {expected:?}"
        );
    }
}

#[test]
fn elements_are_computed_one_by_one() {
    let (t, v) = matrix();
    let map = |f: &dyn Fn(f64) -> f64| v.iter().map(|&x| f(x)).collect::<Vec<_>>();
    assert_close(&(&t + &t), map(&|x| 2.0 * x));
    assert_close(&(&t - &(&t * 3.0)), map(&|x| -2.0 * x));
    assert_close(&(&t * &t), map(&|x| x * x));
    assert_close(&(&t / &(&t * 2.0)), map(&|_| 0.5));
    assert_close(&(&t / 4.0), map(&|x| x / 4.0));
    assert_close(&(&t + 1i64), map(&|x| x + 1.0));
    assert_close(&(&t - 0.5), map(&|x| x - 0.5));
    assert_close(&(1.5 + &t), map(&|x| x + 1.5));
    assert_close(&t.square(), map(&|x| x * x));
    assert_close(&t.abs(), map(&f64::abs));
    assert_close(&t.at_least(0.3), map(&|x| x.max(0.3)));
    assert!(
        (&t * f64::NAN)
            .at_least(0.3)
            .get(0)
            .get(0)
            .double_value()
            .is_nan()
    );
    assert_close(&t.norm(), [v.iter().map(|x| x * x).sum::<f64>().sqrt()]);
    assert_close(&t.exp(), map(&f64::exp));
    assert_close(&t.square().log(), map(&|x| (x * x).ln()));
    assert_close(&t.square().sqrt(), map(&f64::abs));
    assert_close(&t.square().rsqrt(), map(&|x| 1.0 / x.abs()));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    assert_close(&t.sigmoid(), map(&sigmoid));
    assert_close(&t.silu(), map(&|x| x * sigmoid(x)));
    // A scalar does not change the kind, nor does a number without dimensions.
    let half = t.to_kind(Kind::BFloat16);
    assert_eq!((&half * 0.5).kind(), Kind::BFloat16);
    assert_eq!((&half / 2.0).kind(), Kind::BFloat16);
    let ids = Tensor::from_slice(&[7i64]);
    for (computed, expected) in [
        (&ids - 3i64, 4),
        (&ids + 3i64, 10),
        (&ids * 2i64, 14),
        (&ids + &ids, 14),
        (&ids - &(&ids * 3i64), -14),
    ] {
        assert_eq!(
            (computed.kind(), computed.int64_value()),
            (Kind::Int64, expected)
        );
    }
}

#[test]
fn operations_in_place_write_through_views() {
    let (t, v) = matrix();
    let row = t.get(1);
    row.add_(&row.copy());
    let expected = |i: usize, x: f64| {
        if (4..8).contains(&i) { 2.0 * x } else { x }
    };
    assert_close(&t, v.iter().enumerate().map(|(i, &x)| expected(i, x)));
    let mut sum = t.get(0);
    sum += &t.get(2);
    assert_close(&t.get(0), (0..4).map(|i| v[i] + v[i + 8]));
    let bits = Tensor::from_slice(&[6i64, 1]);
    bits.bitwise_xor_(3);
    assert_eq!(bits.to_vec::<i64>(), [5, 2]);
    bits.zero_();
    bits.get(1).fill_(Scalar::Int(9));
    assert_eq!(bits.to_vec::<i64>(), [0, 9]);
}

#[test]
fn masks_choose_elements() {
    let (t, v) = matrix();
    let ids = Tensor::from_slice(&[-100i64, 3, 5]);
    let (ignored, small) = (ids.eq(-100i64), ids.lt(4i64));
    let bits = |mask: &Tensor| mask.to_kind(Kind::Uint8).to_vec::<u8>();
    assert_eq!(bits(&ignored), [1, 0, 0]);
    assert_eq!(bits(&ids.ge(3i64)), [0, 1, 1]);
    assert_eq!(bits(&ids.ge(3i64).logical_and(&small)), [0, 1, 0]);
    assert_eq!(bits(&ids.ge(4i64).logical_or(&ignored)), [1, 0, 1]);
    assert_eq!(ids.masked_fill(&ignored, 0i64).to_vec::<i64>(), [0, 3, 5]);
    let filled = t.masked_fill(&ignored.unsqueeze(1), f64::NEG_INFINITY);
    let filled: Vec<f64> = filled.to_vec();
    assert!(filled[..4].iter().all(|x| *x == f64::NEG_INFINITY) && filled[4..] == v[4..]);
    t.masked_fill_(&small.unsqueeze(1), 0.0);
    assert_close(
        &t,
        v.iter()
            .enumerate()
            .map(|(i, &x)| if i < 8 { 0.0 } else { x }),
    );
    let square = Tensor::ones([3, 3], (Kind::Bool, Device::Cpu));
    assert_eq!(bits(&square.triu(1)), [0, 1, 1, 0, 0, 1, 0, 0, 0]);
    assert_eq!(bits(&square.tril(-1)), [0, 0, 0, 1, 0, 0, 1, 1, 0]);
}

#[test]
fn dimensions_are_reduced() {
    let (t, v) = matrix();
    let rows = || v.chunks(4);
    assert_close(&t.sum(Kind::Double), [v.iter().sum()]);
    assert_eq!(t.sum(Kind::Double).kind(), Kind::Double);
    assert_close(
        &t.sum_dims(&[-1], false, Kind::Float),
        rows().map(|r| r.iter().sum()),
    );
    let kept = t.sum_dims(&[0], true, Kind::Float);
    assert_eq!(kept.size(), [1, 4]);
    assert_close(&kept, (0..4).map(|c| rows().map(|r| r[c]).sum()));
    let means = t
        .to_kind(Kind::BFloat16)
        .mean_dims(&[-1], true, Kind::Float);
    assert_eq!(
        (means.size(), means.kind()),
        ([3, 1].as_slice(), Kind::Float)
    );
    assert_close(&means, rows().map(|r| r.iter().sum::<f64>() / 4.0));
    let (largest, places) = t.max_dim(1, false);
    assert_close(&largest, rows().map(|r| r[3]));
    assert_eq!(places.to_vec::<i64>(), [3, 3, 3]);
    let log_sum = |r: &[f64]| r.iter().map(|x| x.exp()).sum::<f64>().ln();
    assert_close(&t.logsumexp(&[-1], false), rows().map(log_sum));
    let softmax = rows().flat_map(|r| r.iter().map(move |x| (x - log_sum(r)).exp()));
    assert_close(&t.softmax(-1, Kind::Float), softmax);
}

#[test]
fn elements_are_found_by_their_place() {
    let (t, v) = matrix();
    let rows = Tensor::from_slice(&[2i64, 0, 2]);
    assert_close(
        &t.index_select(0, &rows),
        [8, 0, 8].iter().flat_map(|&s| v[s..s + 4].to_vec()),
    );
    let sums = Tensor::zeros([3, 4], FLOAT);
    sums.index_add_(0, &rows, &t);
    let expected = |row: usize, c: usize| match row {
        0 => v[4 + c],
        2 => v[c] + v[8 + c],
        _ => 0.0,
    };
    assert_close(&sums, (0..12).map(|i| expected(i / 4, i % 4)));
    let columns = Tensor::zeros([2, 3], FLOAT);
    columns.index_add_(1, &rows, &Tensor::ones([2, 3], FLOAT));
    assert_close(&columns, [1.0, 0.0, 2.0, 1.0, 0.0, 2.0]);
    let index = Tensor::from_slice(&[1i64, 0, 3]).unsqueeze(1);
    assert_close(&t.gather(1, &index), [v[1], v[4], v[11]]);
    t.scatter_add_(1, &index, &Tensor::ones([3, 1], FLOAT));
    assert_close(&t.gather(1, &index), [v[1] + 1.0, v[4] + 1.0, v[11] + 1.0]);
    let repeated = Tensor::from_slice(&[1i64, 2]).repeat_interleave(2, 0);
    assert_eq!(repeated.to_vec::<i64>(), [1, 1, 2, 2]);
    let stacked = Tensor::stack(&[&rows, &rows], 1);
    assert_eq!(
        (stacked.size(), stacked.to_vec::<i64>()),
        ([3, 2].as_slice(), vec![2, 2, 0, 0, 2, 2])
    );
    assert_eq!(
        Tensor::cat(&[&rows, &rows], 0).to_vec::<i64>(),
        [2, 0, 2, 2, 0, 2]
    );
}

#[test]
fn matrices_are_multiplied_whatever_their_layout() {
    let (a, v) = matrix();
    let b = a.tr();
    let product = |i: usize, j: usize| (0..4).map(|k| v[i * 4 + k] * v[j * 4 + k]).sum::<f64>();
    let expected = || (0..9).map(|i| product(i / 3, i % 3));
    assert_close(&a.mm(&b), expected());
    assert_close(&a.matmul(&b), expected());
    let wide = Tensor::zeros([3, 5], FLOAT);
    let out = wide.narrow(1, 1, 3);
    a.mm_out(&out, &b);
    assert_close(&out, expected());
    out.addmm_(&a, &b);
    assert_close(&out, expected().map(|x| 2.0 * x));
    assert_close(&wide.select(1, 4), [0.0; 3]);
    let bias = Tensor::from_slice(&[1f32, 2.0, 3.0]);
    assert_close(
        &bias.addmm(&a, &b),
        expected()
            .enumerate()
            .map(|(i, x)| x + (i % 3) as f64 + 1.0),
    );
    assert!(!a.mm_out_fp32(&out, &b), "CUDA's alone");
}

#[test]
fn views_share_elements() {
    let (t, v) = matrix();
    assert_eq!(
        t.narrow(1, 1, 2).to_vec::<f64>(),
        [v[1], v[2], v[5], v[6], v[9], v[10]]
    );
    assert_eq!(t.select(-1, -1).to_vec::<f64>(), [v[3], v[7], v[11]]);
    assert_eq!(t.tr().size(), [4, 3]);
    assert!(!t.tr().is_contiguous() && t.tr().contiguous().is_contiguous());
    assert_eq!(t.tr().contiguous().to_vec::<f64>()[1], v[4]);
    assert_eq!(t.view([2, -1]).size(), [2, 6]);
    assert_eq!(t.unsqueeze(-1).squeeze_dim(2).size(), [3, 4]);
    assert_eq!(t.unsqueeze(0).size(), [1, 3, 4]);
    assert_eq!(t.narrow(1, 0, 2).view([3, 1, 2]).size(), [3, 1, 2]);
    assert_eq!(t.tr().reshape([12]).to_vec::<f64>()[1], v[4]);
    assert_eq!(t.flatten(0, -1).size(), [12]);
    assert_eq!(t.view_dtype(Kind::Uint8).size(), [3, 16]);
    assert_eq!(t.view([12]).data_ptr(), t.data_ptr());
    assert_eq!(t.get(1).data_ptr() as usize, t.data_ptr() as usize + 16);
    // A transposed matrix stays one when its kind changes.
    assert_eq!(t.tr().to_kind(Kind::BFloat16).stride(), [1, 4]);
    assert_eq!(t.tr().to_kind(Kind::Double).to_vec::<f64>()[1], v[4]);
    let empty = Tensor::zeros([0, 4], FLOAT);
    assert_eq!(
        (empty.numel(), empty.view([-1]).size()),
        (0, [0].as_slice())
    );
    assert!(empty.to_vec::<f32>().is_empty());
    let refused: [fn(Tensor) -> Tensor; 5] = [
        |t| t.narrow(0, 2, 2),
        |t| t.narrow(0, i64::MAX, 1),
        |t| t.select(0, 3),
        |t| t.view([5, 2]),
        |t| t.transpose(0, 2),
    ];
    for view in refused {
        assert!(std::panic::catch_unwind(|| view(matrix().0)).is_err());
    }
}

#[test]
fn libtorchs_own_words_reach_the_panic() {
    let (t, _) = matrix();
    let misfit = Tensor::ones([5], FLOAT);
    let add = std::panic::AssertUnwindSafe(|| drop(&t + &misfit));
    let panic = std::panic::catch_unwind(add).expect_err("sizes do not fit");
    let text = panic.downcast_ref::<String>().expect("a message");
    let torch = tandem_torch::open(&tandem_torch::Surroundings::default()).expect("it is open");
    let words = if torch.version() < tandem_torch::Version::new(2, 13, 0) {
        "printed why on standard error"
    } else {
        "must match the size of tensor b (5)"
    };
    assert!(
        text.starts_with("libtorch, add: ") && text.contains(words),
        "{text}"
    );
    let huge = std::panic::catch_unwind(|| drop(Tensor::empty([1 << 50], FLOAT)));
    assert!(huge.is_err(), "there is no petabyte of memory");
}

#[test]
fn tensors_cross_threads() {
    let (t, v) = matrix();
    let doubled = std::thread::spawn(move || &t * 2.0)
        .join()
        .expect("no panic");
    assert_close(&doubled, v.iter().map(|x| 2.0 * x));
}
