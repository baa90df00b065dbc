//! The rotation as a kernel over tokens, in place.

use tch::{Device, Tensor};

use crate::cpu::element::{Element, Stored, is_plain, slice, with_element};
use crate::cpu::kernel::{self, InstructionSet, Kernel};

/// As [`super::aten::rotate_`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Option<()> {
    with_element!(x.kind(), T => {
        let tokens = Tokens::<T>::of(x)?;
        let half = *cos.size().get(1)? as usize;
        let table_fits = is_plain::<f32>(cos) && is_plain::<f32>(sin) && sin.size() == cos.size();
        if !table_fits || cos.size()[0] as usize != tokens.seq || half == 0 || 2 * half > tokens.head_dim {
            return None;
        }
        let head_dim = tokens.head_dim;
        let cos = slice::<f32>(cos).chunks_exact(half);
        let table = cos.zip(slice::<f32>(sin).chunks_exact(half)).cycle();
        kernel::for_each(tokens.zip(table).map(|(heads, (cos, sin))| Rotation {
            heads,
            head_dim,
            cos,
            sin,
            direction,
        }));
        Some(())
    })
}

/// All heads of one token after another, out of `[batch, seq, heads, head_dim]` whose tokens may lie apart, as q, k and
/// v do in their common buffer.
struct Tokens<'a, T> {
    next: *mut T,
    left: usize,
    stride: usize,
    width: usize,
    seq: usize,
    head_dim: usize,
    _tensor: std::marker::PhantomData<&'a mut T>,
}

impl<'a, T: Stored> Tokens<'a, T> {
    /// `None` where the tokens are not equally far apart, or the heads of one are not together.
    fn of(x: &'a Tensor) -> Option<Self> {
        let [batch, seq, heads, head_dim] = <[i64; 4]>::try_from(x.size()).ok()?;
        let [batch_stride, stride, head_stride, 1] = <[i64; 4]>::try_from(x.stride()).ok()? else {
            return None;
        };
        let width = heads * head_dim;
        let even = batch == 1 || batch_stride == seq * stride;
        let together = heads == 1 || head_stride == head_dim;
        let apart = stride >= width;
        let suits = x.device() == Device::Cpu && x.kind() == T::KIND && x.numel() > 0;
        (suits && even && together && apart).then(|| Self {
            next: x.data_ptr() as *mut T,
            left: (batch * seq) as usize,
            stride: stride as usize,
            width: width as usize,
            seq: seq as usize,
            head_dim: head_dim as usize,
            _tensor: std::marker::PhantomData,
        })
    }
}

impl<'a, T> Iterator for Tokens<'a, T> {
    type Item = &'a mut [T];

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let token = self.next;
        if self.left > 0 {
            // SAFETY: another token follows, `stride` elements further in the same storage.
            self.next = unsafe { token.add(self.stride) };
        }
        // SAFETY: `of` checked that a token's `width` elements lie one after another and end before the next token
        // begins, so the slices do not overlap; the tensor is borrowed for `'a`, and the rotation is the only operation
        // on its storage meanwhile (the tables are tensors of their own).
        Some(unsafe { std::slice::from_raw_parts_mut(token, self.width) })
    }
}

/// One token's heads.
struct Rotation<'a, T> {
    heads: &'a mut [T],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    direction: f32,
}

impl<T: Element> Kernel for Rotation<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (first, rest) = head.split_at_mut(half);
            let pairs = first.iter_mut().zip(&mut rest[..half]);
            for ((a, b), (cos, sin)) in pairs.zip(self.cos.iter().zip(self.sin)) {
                let (x, y, sin) = (a.widen(), b.widen(), sin * self.direction);
                *a = T::round(x * cos - y * sin);
                *b = T::round(y * cos + x * sin);
            }
        }
    }
}
