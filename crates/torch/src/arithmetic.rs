//! Element by element: sums, products, functions.

use std::borrow::Borrow;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use crate::abi::Handle;
use crate::dispatch::{Arg, Operator};
use crate::error::expect;
use crate::library::device_operator;
use crate::operators::{
    ABS, BITWISE_XOR_, DIV, ERF, EXP, FLOOR_DIVIDE, LOG, MAXIMUM, RSQRT, SIGMOID, SILU, SQRT, TANH,
};
use crate::scalar::Scalar;
use crate::tensor::{Tensor, new_tensor};

impl Tensor {
    #[track_caller]
    fn add_scaled(&self, other: &Self, factor: i64) -> Self {
        if !self.kind().is_floating_point() {
            return self.add_integers(&(other * factor));
        }
        let add = device_operator!(self, add_Tensor);
        expect(new_tensor("add", |out| {
            // SAFETY: both handles are alive.
            unsafe { add(self.handle(), other.handle(), factor as f64, out) }
        }))
    }

    /// The C functions for addition take their factors and numbers as floats, which libtorch refuses beside integers, and
    /// the dispatcher takes none.
    #[track_caller]
    fn add_integers(&self, other: &Self) -> Self {
        Self::stack(&[self, other], 0).sum_dims(&[0], false, self.kind())
    }

    #[track_caller]
    fn add_scalar(&self, scalar: Scalar) -> Self {
        if let (false, Scalar::Int(value)) = (self.kind().is_floating_point(), scalar) {
            let other = Self::full(self.size(), value, (self.kind(), self.device()));
            return self.add_integers(&other);
        }
        let add = device_operator!(self, add_Scalar);
        expect(new_tensor("add", |out| {
            // SAFETY: the handle is alive.
            unsafe { add(self.handle(), scalar.as_f64(), 1.0, out) }
        }))
    }

    #[track_caller]
    fn multiply(&self, other: &Self) -> Self {
        let mul = device_operator!(self, mul_Tensor);
        expect(new_tensor("mul", |out| {
            // SAFETY: both handles are alive.
            unsafe { mul(self.handle(), other.handle(), out) }
        }))
    }

    #[track_caller]
    fn multiply_scalar(&self, scalar: Scalar) -> Self {
        if let (false, Scalar::Int(_)) = (self.kind().is_floating_point(), scalar) {
            return self.multiply(&scalar.tensor(self.kind()));
        }
        let mul = device_operator!(self, mul_Scalar);
        expect(new_tensor("mul", |out| {
            // SAFETY: the handle is alive.
            unsafe { mul(self.handle(), scalar.as_f64(), out) }
        }))
    }

    #[track_caller]
    fn divide(&self, other: &Self) -> Self {
        expect(DIV.call(&[Arg::Tensor(self), Arg::Tensor(other)]))
    }

    /// Integers divided by `divisor` and rounded down.
    #[track_caller]
    pub fn floor_divide(&self, divisor: i64) -> Self {
        let divisor = Scalar::Int(divisor).tensor(self.kind());
        expect(FLOOR_DIVIDE.call(&[Arg::Tensor(self), Arg::Tensor(&divisor)]))
    }

    /// Adds `other` in place. (The C ABI has no operator for it: the sum is a tensor of its own first.)
    #[track_caller]
    pub fn add_(&self, other: &Self) {
        self.copy_(&self.add_scaled(other, 1));
    }

    /// Flips bits of all elements in place.
    #[track_caller]
    pub fn bitwise_xor_(&self, bits: i64) {
        let bits = Scalar::Int(bits).tensor(self.kind());
        expect(BITWISE_XOR_.call(&[Arg::Tensor(self), Arg::Tensor(&bits)]));
    }

    #[track_caller]
    fn unary(&self, operator: &Operator) -> Self {
        expect(operator.call(&[Arg::Tensor(self)]))
    }

    /// Magnitudes.
    #[track_caller]
    pub fn abs(&self) -> Self {
        self.unary(&ABS)
    }

    /// `e^x`
    #[track_caller]
    pub fn exp(&self) -> Self {
        self.unary(&EXP)
    }

    /// Each element, or `least` where that is more; what is no number stays none.
    #[track_caller]
    pub fn at_least(&self, least: f64) -> Self {
        let least = Scalar::Float(least).tensor(self.kind());
        expect(MAXIMUM.call(&[Arg::Tensor(self), Arg::Tensor(&least)]))
    }

    /// Natural logarithms.
    #[track_caller]
    pub fn log(&self) -> Self {
        self.unary(&LOG)
    }

    /// Square roots.
    #[track_caller]
    pub fn sqrt(&self) -> Self {
        self.unary(&SQRT)
    }

    /// One over the square roots.
    #[track_caller]
    pub fn rsqrt(&self) -> Self {
        self.unary(&RSQRT)
    }

    /// Squares.
    #[track_caller]
    pub fn square(&self) -> Self {
        self.multiply(self)
    }

    /// `x * sigmoid(x)`
    #[track_caller]
    pub fn silu(&self) -> Self {
        self.unary(&SILU)
    }

    /// `1 / (1 + e^-x)`
    #[track_caller]
    pub fn sigmoid(&self) -> Self {
        self.unary(&SIGMOID)
    }

    /// The error function.
    #[track_caller]
    pub fn erf(&self) -> Self {
        self.unary(&ERF)
    }

    /// `tanh x`.
    #[track_caller]
    pub fn tanh(&self) -> Self {
        self.unary(&TANH)
    }

    /// One tensor of several, joined along dimension `dim`.
    #[track_caller]
    pub fn cat(tensors: &[impl Borrow<Self>], dim: i64) -> Self {
        let Some(first) = tensors.first().map(Borrow::borrow) else {
            panic!("there is nothing to join");
        };
        let handles: Vec<Handle> = tensors
            .iter()
            .map(|tensor| tensor.borrow().handle())
            .collect();
        let cat = device_operator!(first, cat);
        expect(new_tensor("cat", |out| {
            // SAFETY: the handles are alive, and as many as is said.
            unsafe { cat(handles.as_ptr(), handles.len() as i64, dim, out) }
        }))
    }
}

/// An operator for every mixture of tensors and references, and for numbers on the right.
macro_rules! infix {
    ($trait:ident, $name:ident, $with_tensor:expr, $with_scalar:expr) => {
        infix!(@tensors $trait, $name, $with_tensor, Tensor, Tensor);
        infix!(@tensors $trait, $name, $with_tensor, Tensor, &Tensor);
        infix!(@tensors $trait, $name, $with_tensor, &Tensor, Tensor);
        infix!(@tensors $trait, $name, $with_tensor, &Tensor, &Tensor);
        infix!(@scalar $trait, $name, $with_scalar, Tensor, f64);
        infix!(@scalar $trait, $name, $with_scalar, &Tensor, f64);
        infix!(@scalar $trait, $name, $with_scalar, Tensor, i64);
        infix!(@scalar $trait, $name, $with_scalar, &Tensor, i64);
    };
    (@tensors $trait:ident, $name:ident, $with:expr, $left:ty, $right:ty) => {
        impl $trait<$right> for $left {
            type Output = Tensor;

            #[track_caller]
            fn $name(self, other: $right) -> Tensor {
                let with: fn(&Tensor, &Tensor) -> Tensor = $with;
                with(Borrow::borrow(&self), Borrow::borrow(&other))
            }
        }
    };
    (@scalar $trait:ident, $name:ident, $with:expr, $left:ty, $number:ty) => {
        impl $trait<$number> for $left {
            type Output = Tensor;

            #[track_caller]
            fn $name(self, number: $number) -> Tensor {
                let with: fn(&Tensor, Scalar) -> Tensor = $with;
                with(Borrow::borrow(&self), number.into())
            }
        }
    };
}

fn negative(scalar: Scalar) -> Scalar {
    match scalar {
        Scalar::Int(value) => Scalar::Int(-value),
        Scalar::Float(value) => Scalar::Float(-value),
    }
}

infix!(Add, add, |a, b| a.add_scaled(b, 1), Tensor::add_scalar);
infix!(Sub, sub, |a, b| a.add_scaled(b, -1), |a, number| a
    .add_scalar(negative(number)));
infix!(Mul, mul, Tensor::multiply, Tensor::multiply_scalar);
infix!(Div, div, Tensor::divide, |a, number| a
    .divide(&number.tensor(a.kind())));

impl Add<&Tensor> for f64 {
    type Output = Tensor;

    #[track_caller]
    fn add(self, tensor: &Tensor) -> Tensor {
        tensor.add_scalar(self.into())
    }
}

impl AddAssign<&Tensor> for Tensor {
    #[track_caller]
    fn add_assign(&mut self, other: &Tensor) {
        self.add_(other);
    }
}

impl AddAssign<Tensor> for Tensor {
    #[track_caller]
    fn add_assign(&mut self, other: Tensor) {
        self.add_(&other);
    }
}
