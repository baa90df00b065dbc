//! The rows' operations as tensor operations: for any device and kind, and the yardstick of the fused kernels.

use tandem_torch::{Kind, Tensor};

use super::Routing;

/// As [`super::scale`].
pub fn scale(x: &Tensor, factors: &Tensor) -> Tensor {
    (x.to_kind(Kind::Float) * factors.unsqueeze(1)).to_kind(x.kind())
}

/// As [`super::combine`].
pub fn combine(x: &Tensor, plus: Option<&Tensor>, routing: &Routing) -> Tensor {
    let choices = x.to_kind(Kind::Float).index_select(0, &routing.rows);
    let choices = choices.view([-1, routing.top_k(), x.size()[1]]);
    let sum = choices.sum_dims(&[1], false, Kind::Float);
    let sum = match plus {
        Some(plus) => sum + plus,
        None => sum,
    };
    sum.to_kind(x.kind())
}

/// As [`super::row_dots`].
pub fn row_dots(a: &Tensor, b: &Tensor) -> Tensor {
    let product = a.to_kind(Kind::Float) * b.to_kind(Kind::Float);
    product.sum_dims(&[1], false, Kind::Float)
}
