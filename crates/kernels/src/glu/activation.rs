//! What a gate goes through before it is multiplied.

use crate::dispatch::InstructionSet;
use crate::exp::exp;
use crate::lanes::Lanes;

/// The activation of a gated linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + e^-x)`: SwiGLU.
    Silu,
    /// GELU by its approximation with a hyperbolic tangent (arXiv 1606.08415): GeGLU as Gemma has it.
    GeluTanh,
    /// `x` times the normal distribution function.
    Gelu,
}

/// An activation as code.
pub(super) trait Curve: Send {
    /// At `x`.
    fn value<I: InstructionSet>(x: Lanes<I>) -> Lanes<I>;

    /// At `x`, with the derivative.
    fn value_and_slope<I: InstructionSet>(x: Lanes<I>) -> (Lanes<I>, Lanes<I>);
}

/// `1 / (1 + e^-x)`; 0 and 1 at the ends.
#[inline(always)]
fn sigmoid<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
    1.0 / (1.0 + exp(-x))
}

/// [`Activation::Silu`].
pub(super) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope<I: InstructionSet>(x: Lanes<I>) -> (Lanes<I>, Lanes<I>) {
        let sigmoid = sigmoid(x);
        let silu = x * sigmoid;
        (silu, sigmoid * (1.0 + x - silu))
    }
}

/// [`Activation::GeluTanh`].
pub(super) struct GeluTanh;

/// `2 sqrt(2 / pi)`: half of `1 + tanh u` is the sigmoid of `2 u`.
const TWICE_ROOT: f32 = 1.595_769;
/// The cube's coefficient in the approximation.
const CUBE: f32 = 0.044_715;
/// Beyond this the sigmoid is 0 or 1, and larger squares would only become infinite.
const LARGEST_SQUARE: f32 = 1e6;

impl GeluTanh {
    #[inline(always)]
    fn square<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
        (x * x).map(|square| {
            // Not `min`, which would lose a NaN.
            if square > LARGEST_SQUARE {
                LARGEST_SQUARE
            } else {
                square
            }
        })
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
        let inner = TWICE_ROOT * x * Self::square(x).mul_add(CUBE, 1.0);
        x * sigmoid(inner)
    }

    #[inline(always)]
    fn value_and_slope<I: InstructionSet>(x: Lanes<I>) -> (Lanes<I>, Lanes<I>) {
        let square = Self::square(x);
        let inner = TWICE_ROOT * x * square.mul_add(CUBE, 1.0);
        let sigmoid = sigmoid(inner);
        let value = x * sigmoid;
        let inner_slope = TWICE_ROOT * square.mul_add(3.0 * CUBE, 1.0);
        (value, sigmoid + value * (1.0 - sigmoid) * inner_slope)
    }
}

/// [`Activation::Gelu`].
pub(super) struct Gelu;

impl Gelu {
    /// The normal distribution function and its density at `x`.
    ///
    /// Abramowitz and Stegun's 7.1.26 for the error function, which is within 1.5e-7 of it.
    #[inline(always)]
    fn normal<I: InstructionSet>(x: Lanes<I>) -> (Lanes<I>, Lanes<I>) {
        let size = x.map(f32::abs) * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / size.mul_add(0.327_591_1, 1.0);
        let p = t.mul_add(1.061_405_4, -1.453_152);
        let p = p.mul_add(t, 1.421_413_7);
        let p = p.mul_add(t, -0.284_496_74);
        let p = p.mul_add(t, 0.254_829_6);
        let bell = exp(-size * size);
        let tail = 0.5 * p * t * bell;
        let below = Lanes::each(|lane| {
            let tail = tail.get(lane);
            if x.get(lane) < 0.0 { tail } else { 1.0 - tail }
        });
        // `1 / sqrt(2 pi)`
        (below, 0.398_942_3 * bell)
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn value<I: InstructionSet>(x: Lanes<I>) -> Lanes<I> {
        x * Self::normal(x).0
    }

    #[inline(always)]
    fn value_and_slope<I: InstructionSet>(x: Lanes<I>) -> (Lanes<I>, Lanes<I>) {
        let (below, density) = Self::normal(x);
        (x * below, x.mul_add(density, below))
    }
}
