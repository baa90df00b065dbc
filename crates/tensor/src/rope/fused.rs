//! The rotation as a kernel over tokens, in place.

use tandem_kernels::rope::{self, Table, TokensMut};
use tandem_torch::Tensor;

use crate::cpu::element::{Stored, is_plain, on_host, slice, span_mut, with_element};

/// As [`super::aten::rotate_`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Option<()> {
    with_element!(x.kind(), T => {
        let [_, seq, _, head_dim] = <[i64; 4]>::try_from(x.size()).ok()?;
        let half = *cos.size().get(1)?;
        let table_fits = is_plain::<f32>(cos) && is_plain::<f32>(sin) && sin.size() == cos.size();
        if !table_fits || cos.size()[0] != seq || half == 0 || 2 * half > head_dim {
            return None;
        }
        let tokens = tokens::<T>(x)?;
        let table = Table::new(slice::<f32>(cos), slice::<f32>(sin), half as usize);
        rope::rotate(tokens, head_dim as usize, table, direction);
        Some(())
    })
}

/// The tokens of `[batch, seq, heads, head_dim]`, which may lie apart, as q, k and v do in their common buffer; `None` where
/// they are not equally far apart, or the heads of one are not together.
fn tokens<T: Stored>(x: &Tensor) -> Option<TokensMut<'_, T>> {
    let [batch, seq, heads, head_dim] = <[i64; 4]>::try_from(x.size()).ok()?;
    let [batch_stride, stride, head_stride, 1] = <[i64; 4]>::try_from(x.stride()).ok()? else {
        return None;
    };
    let width = heads * head_dim;
    let even = batch == 1 || batch_stride == seq * stride;
    let together = heads == 1 || head_stride == head_dim;
    let apart = stride >= width;
    let suits = on_host(x) && x.kind() == T::KIND && x.numel() > 0;
    (suits && even && together && apart).then(|| {
        // SAFETY: the rotation is the only operation on this storage meanwhile (the tables are tensors of their own).
        let data = unsafe { span_mut::<T>(x) };
        TokensMut::new(
            data,
            (batch * seq) as usize,
            width as usize,
            stride as usize,
        )
    })
}
