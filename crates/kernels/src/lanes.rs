//! Numbers that go through a computation together.
//!
//! A processor starts the steps of one chain (an exponential has fifteen) one after the other, and works on as many chains at a
//! time as its schedulers hold: of one vector each that is too few to keep it busy. So kernels with long chains take four of the
//! widest vectors at once, and all of them take a step before any takes the next.

mod joined;

use std::marker::PhantomData;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::element::Element;
use crate::instruction_set::InstructionSet;

pub(crate) use crate::instruction_set::LANES;
pub(crate) use joined::{dot, max, sum, sum_of_products};

/// Runs `$body` for one group after the other of at most [`LANES`] elements of slices, under the slices' names. All of them have
/// `$len` elements.
///
/// The last group, which may be smaller, has a body of its own: in the other the compiler knows the length.
macro_rules! by_lanes {
    ($len:expr, [$($read:ident),*], [$($written:ident),*] => $body:block) => {
        let len: usize = $len;
        let whole = len / $crate::lanes::LANES * $crate::lanes::LANES;
        for start in (0..whole).step_by($crate::lanes::LANES) {
            $(let $read = &$read[start..][..$crate::lanes::LANES];)*
            $(let $written = &mut $written[start..][..$crate::lanes::LANES];)*
            $body
        }
        if whole < len {
            $(let $read = &$read[whole..len];)*
            $(let $written = &mut $written[whole..len];)*
            $body
        }
    };
}
pub(crate) use by_lanes;

/// [`LANES`] numbers in fp32. Operators take one step for each of them.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Lanes<I>([f32; LANES], PhantomData<I>);

impl<I: InstructionSet> Lanes<I> {
    #[inline(always)]
    fn new(values: [f32; LANES]) -> Self {
        Self(values, PhantomData)
    }

    /// What `of` gives for each lane's number: one step.
    #[inline(always)]
    pub(crate) fn each(of: impl Fn(usize) -> f32) -> Self {
        let mut values = [0.0; LANES];
        for (lane, value) in values.iter_mut().enumerate() {
            *value = of(lane);
        }
        Self::new(values)
    }

    /// At most [`LANES`] elements, and 0 in lanes that have none.
    #[inline(always)]
    pub(crate) fn load<T: Element>(elements: &[T]) -> Self {
        Self::load_padded(elements, 0.0)
    }

    /// The same with `rest` in lanes that have no element.
    #[inline(always)]
    pub(crate) fn load_padded<T: Element>(elements: &[T], rest: f32) -> Self {
        match elements.try_into() {
            Ok(elements) => Self::load_all(elements),
            Err(_) => Self::load_all(&padded(elements, T::round(rest))),
        }
    }

    #[inline(always)]
    fn load_all<T: Element>(elements: &[T; LANES]) -> Self {
        Self::each(|lane| elements[lane].widen())
    }

    /// As many as there are `elements`, rounded.
    #[inline(always)]
    pub(crate) fn store<T: Element>(self, elements: &mut [T]) {
        match <&mut [T; LANES]>::try_from(&mut *elements) {
            Ok(elements) => I::round(&self.0, elements),
            Err(_) => {
                let mut rounded = [T::round(0.0); LANES];
                I::round(&self.0, &mut rounded);
                copy_first(&rounded, elements);
            }
        }
    }

    /// As a bf16 or what else is kept between two steps: rounded and widened again.
    #[inline(always)]
    pub(crate) fn rounded_to<T: Element>(self) -> Self {
        let mut rounded = [T::round(0.0); LANES];
        I::round(&self.0, &mut rounded);
        Self::load_all(&rounded)
    }

    #[inline(always)]
    pub(crate) fn get(&self, lane: usize) -> f32 {
        self.0[lane]
    }

    /// `self * factor + term`, as [`InstructionSet::mul_add`].
    #[inline(always)]
    pub(crate) fn mul_add(self, factor: impl Into<Self>, term: impl Into<Self>) -> Self {
        let (factor, term) = (factor.into(), term.into());
        Self::each(|lane| I::mul_add(self.0[lane], factor.0[lane], term.0[lane]))
    }

    /// `of` each number.
    #[inline(always)]
    pub(crate) fn map(self, of: impl Fn(f32) -> f32) -> Self {
        Self::each(|lane| of(self.0[lane]))
    }
}

impl<I: InstructionSet> From<f32> for Lanes<I> {
    #[inline(always)]
    fn from(value: f32) -> Self {
        Self::new([value; LANES])
    }
}

macro_rules! operators {
    ($($operator:ident $function:ident $sign:tt)*) => {$(
        impl<I: InstructionSet> $operator for Lanes<I> {
            type Output = Self;

            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                Self::each(|lane| self.0[lane] $sign other.0[lane])
            }
        }

        impl<I: InstructionSet> $operator<f32> for Lanes<I> {
            type Output = Self;

            #[inline(always)]
            fn $function(self, other: f32) -> Self {
                Self::each(|lane| self.0[lane] $sign other)
            }
        }

        impl<I: InstructionSet> $operator<Lanes<I>> for f32 {
            type Output = Lanes<I>;

            #[inline(always)]
            fn $function(self, other: Lanes<I>) -> Lanes<I> {
                Lanes::each(|lane| self $sign other.0[lane])
            }
        }
    )*};
}

operators!(Add add + Sub sub - Mul mul * Div div /);

/// In place: a sum that a loop carries stays in registers, as a new one for each turn would not.
impl<I: InstructionSet> AddAssign for Lanes<I> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        for (sum, other) in self.0.iter_mut().zip(&other.0) {
            *sum += other;
        }
    }
}

impl<I: InstructionSet> Neg for Lanes<I> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        self.map(|x| -x)
    }
}

/// Out of the way of the loop, in which it comes last and once.
#[inline(never)]
fn padded<T: Element>(elements: &[T], rest: T) -> [T; LANES] {
    let mut all = [rest; LANES];
    all[..elements.len()].copy_from_slice(elements);
    all
}

/// As [`padded`].
#[inline(never)]
fn copy_first<T: Element>(all: &[T; LANES], elements: &mut [T]) {
    elements.copy_from_slice(&all[..elements.len()]);
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// What `of` gives for each of the numbers, stored as `T`.
    #[inline(always)]
    pub fn results<I: InstructionSet, T: Element>(
        x: &[f32],
        of: impl Fn(Lanes<I>) -> Lanes<I>,
    ) -> Vec<T> {
        let mut results = vec![T::round(f32::NAN); x.len()];
        let result = &mut results[..];
        by_lanes!(x.len(), [x], [result] => {
            of(Lanes::load(x)).store(result);
        });
        results
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::dispatch::{Kernel, testing::run_on_each_set};

    struct Rounded<'a>(&'a [f32]);

    impl Kernel for Rounded<'_> {
        type Output = Vec<bf16>;

        #[inline(always)]
        fn run<I: InstructionSet>(self) -> Vec<bf16> {
            testing::results::<I, _>(self.0, |x| x)
        }
    }

    /// Of random bits, the ends, and what lies halfway between two neighbours; the last group is not whole.
    #[test]
    fn every_set_rounds_as_elements_do() {
        let random = (0..1u32 << 16).map(|i| i.wrapping_mul(0x9e37_79b9));
        let ends = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX].map(f32::to_bits);
        let nans = [f32::NAN.to_bits(), 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001];
        let halves = [0x3f80_8000, 0x3f81_8000, 0x3f80_7fff, 0x3f80_8001];
        let bits = random.chain(ends).chain(nans).chain(halves);
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        for (set, rounded) in run_on_each_set(|| Rounded(&values)) {
            assert_eq!(rounded.len(), values.len());
            for (value, rounded) in values.iter().zip(rounded) {
                let expected = <bf16 as Element>::round(*value);
                let is_flushed = value.abs() < f32::MIN_POSITIVE && rounded.widen() == 0.0;
                assert!(
                    rounded == expected || rounded.is_nan() && expected.is_nan() || is_flushed,
                    "{set}: {value:e} is {rounded:e}, not {expected:e}"
                );
            }
        }
    }
}
