//! Matrix products.

use crate::dispatch::Arg;
use crate::error::expect;
use crate::kind::Kind;
use crate::library::{device_operator, torch};
use crate::operators::MATMUL;
use crate::stand_in;
use crate::tensor::Tensor;

/// Half precision matrices, an fp32 result.
const WIDENING: &str = "mm with an fp32 result";

impl Tensor {
    /// `self [m, k] . b [k, n]`
    #[track_caller]
    pub fn mm(&self, b: &Self) -> Self {
        let (m, n) = product_size(self, b);
        let out = Self::empty([m, n], (self.kind(), self.device()));
        self.mm_out(&out, b);
        out
    }

    /// [`Self::mm`] into `out [m, n]`.
    #[track_caller]
    pub fn mm_out(&self, out: &Self, b: &Self) {
        let (m, n) = product_size(self, b);
        // libtorch would resize it.
        assert_eq!(out.size(), [m, n], "the product's sizes");
        let mm = device_operator!(self, mm_out);
        // SAFETY: the handles are alive, and the result has the product's sizes.
        let code = unsafe { mm(out.handle(), self.handle(), b.handle()) };
        expect(out.overwritten(code, "mm"));
    }

    /// `self + a [m, k] . b [k, n]`, where `self` is `[m, n]` or `[n]`.
    #[track_caller]
    pub fn addmm(&self, a: &Self, b: &Self) -> Self {
        let (m, n) = product_size(a, b);
        let out = Self::empty([m, n], (a.kind(), a.device()));
        add_product(&out, self, a, b);
        out
    }

    /// Adds `a [m, k] . b [k, n]` in place.
    #[track_caller]
    pub fn addmm_(&self, a: &Self, b: &Self) {
        let (m, n) = product_size(a, b);
        assert_eq!(self.size(), [m, n], "the product's sizes");
        add_product(self, self, a, b);
    }

    /// `self . b` for matrices in the last two dimensions; dimensions before them are broadcast.
    #[track_caller]
    pub fn matmul(&self, b: &Self) -> Self {
        expect(MATMUL.call(&[Arg::Tensor(self), Arg::Tensor(b)]))
    }

    /// [`Self::mm_out`] of half precision matrices with an fp32 result; false, with nothing written, where this libtorch or
    /// device has no such product.
    #[track_caller]
    pub fn mm_out_fp32(&self, out: &Self, b: &Self) -> bool {
        if !self.device().is_cuda() || out.kind() != Kind::Float {
            return false;
        }
        if self.pretends() {
            let wide = |tensor: &Self| tensor.to_kind(Kind::Float);
            stand_in::for_operator(WIDENING, out.over(), &[out, self, b], || {
                out.copy_(&wide(self).mm(&wide(b)));
                []
            });
            return true;
        }
        let torch = torch();
        let Some(mm) = expect(torch.cuda()).functions.aoti_torch_cuda_mm_dtype_out else {
            return false;
        };
        let (m, n) = product_size(self, b);
        assert_eq!(out.size(), [m, n], "the product's sizes");
        let kind = torch.codes.of_kind(Kind::Float);
        // SAFETY: as in `mm_out`.
        let code = unsafe { mm(out.handle(), self.handle(), b.handle(), kind) };
        expect(out.overwritten(code, WIDENING));
        true
    }
}

#[track_caller]
fn product_size(a: &Tensor, b: &Tensor) -> (i64, i64) {
    match (a.size(), b.size()) {
        (&[m, k], &[same_k, n]) if k == same_k => (m, n),
        _ => panic!("{a:?} and {b:?} have no product"),
    }
}

#[track_caller]
fn add_product(out: &Tensor, to: &Tensor, a: &Tensor, b: &Tensor) {
    let addmm = device_operator!(a, addmm_out);
    // SAFETY: the handles are alive, and the result has the product's sizes.
    let code = unsafe { addmm(out.handle(), to.handle(), a.handle(), b.handle(), 1.0, 1.0) };
    expect(out.overwritten(code, "addmm"));
}
