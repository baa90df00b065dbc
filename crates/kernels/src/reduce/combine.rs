//! How two elements become one.

/// The type that a reduction is done in.
pub trait Wide: Copy + Default {
    /// Integers wrap around.
    fn sum(a: Self, b: Self) -> Self;
    /// The larger; NaN wins.
    fn max(a: Self, b: Self) -> Self;
    /// The smaller; NaN wins.
    fn min(a: Self, b: Self) -> Self;
}

/// How two elements become one, as a type, so that each reduction is compiled for itself.
pub trait Combine {
    /// `a` is of the earlier rank.
    fn combine<W: Wide>(a: W, b: W) -> W;
}

/// [`Wide::sum`].
pub struct Sum;
/// [`Wide::max`].
pub struct Max;
/// [`Wide::min`].
pub struct Min;

impl Combine for Sum {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::sum(a, b)
    }
}

impl Combine for Max {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::max(a, b)
    }
}

impl Combine for Min {
    #[inline(always)]
    fn combine<W: Wide>(a: W, b: W) -> W {
        W::min(a, b)
    }
}

macro_rules! wide_floats {
    ($($wide:ty)*) => {$(
        // A comparison with NaN is false: an `a` that is NaN stays, and a `b` that is NaN is taken by the second test.
        impl Wide for $wide {
            #[inline(always)]
            fn sum(a: Self, b: Self) -> Self {
                a + b
            }

            #[inline(always)]
            fn max(a: Self, b: Self) -> Self {
                if b > a || b.is_nan() { b } else { a }
            }

            #[inline(always)]
            fn min(a: Self, b: Self) -> Self {
                if b < a || b.is_nan() { b } else { a }
            }
        }
    )*};
}

macro_rules! wide_integers {
    ($($wide:ty)*) => {$(
        impl Wide for $wide {
            #[inline(always)]
            fn sum(a: Self, b: Self) -> Self {
                a.wrapping_add(b)
            }

            #[inline(always)]
            fn max(a: Self, b: Self) -> Self {
                Ord::max(a, b)
            }

            #[inline(always)]
            fn min(a: Self, b: Self) -> Self {
                Ord::min(a, b)
            }
        }
    )*};
}

wide_floats!(f32 f64);
wide_integers!(i64 i32 u8);
