//! Operators by name: libtorch's dispatcher, with its arguments on a stack of 64-bit values
//! (`torch/csrc/stable/stableivalue_conversions.h` has the rules).

use std::ffi::CStr;
use std::ptr::null_mut;

use crate::abi::{Handle, StackValue};
use crate::error::TorchError;
use crate::kind::Kind;
use crate::library::torch;
use crate::pretend;
use crate::recorder::{self, Action, Writes};
use crate::tensor::Tensor;

/// An argument, in the type that the operator's schema says. Schemas with `Scalar` cannot be called this way.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// `Tensor`
    Tensor(&'a Tensor),
    /// `int`
    Int(i64),
    /// `int?`, given
    SomeInt(i64),
    /// `float`
    Float(f64),
    /// `float?`, given
    SomeFloat(f64),
    /// `bool`
    Bool(bool),
    /// `bool?`, given
    SomeBool(bool),
    /// `bool[]`
    Bools(&'a [bool]),
    /// `ScalarType?`, given
    SomeKind(Kind),
    /// `int[]`
    Ints(&'a [i64]),
    /// `int[]?`, given
    SomeInts(&'a [i64]),
    /// `Tensor?`, given
    SomeTensor(&'a Tensor),
    /// `Tensor[]`
    Tensors(&'a [&'a Tensor]),
    /// `Tensor?[]`
    OptionalTensors(&'a [Option<&'a Tensor>]),
    /// Any `?`, not given
    None,
}

/// An operator of libtorch's dispatcher.
pub(crate) struct Operator {
    /// Such as `aten::sum`.
    pub(crate) name: &'static CStr,
    /// Such as `dim_IntList`; empty for the one without a name.
    pub(crate) overload: &'static CStr,
    /// Tensors that it returns.
    pub(crate) results: usize,
}

/// Values of the longest stack.
const STACK: usize = 15;

impl Operator {
    /// Calls the operator, whose only result is a tensor.
    #[inline]
    pub(crate) fn call(&self, arguments: &[Arg<'_>]) -> Result<Tensor, TorchError> {
        let [result] = self.call_for(arguments)?;
        Ok(result)
    }

    /// Calls the operator, which has `N` results, all of them tensors.
    pub(crate) fn call_for<const N: usize>(
        &self,
        arguments: &[Arg<'_>],
    ) -> Result<[Tensor; N], TorchError> {
        debug_assert_eq!(N, self.results);
        debug_assert!(arguments.len() <= STACK);
        let torch = torch();
        let mut stack: [StackValue; STACK] = [0; STACK];
        arguments.iter().for_each(Arg::touch);
        for (place, argument) in stack.iter_mut().zip(arguments) {
            *place = argument.lower()?;
        }
        // SAFETY: the stack holds what the operator's schema asks for, in the conventions of the release that is loaded, and has
        // room for the results. The dispatcher takes over all handles on it.
        let code = unsafe {
            (torch.functions.torch_call_dispatcher)(
                self.name.as_ptr(),
                self.overload.as_ptr(),
                stack.as_mut_ptr(),
                torch.abi_version,
            )
        };
        pretend::called();
        if recorder::is_on() {
            recorder::called(&self.full_name(), self.writes(), Action::Compute);
        }
        if code != 0 {
            torch.check(code, &self.full_name())?;
        }
        Ok(std::array::from_fn(|i| Tensor::own(stack[i] as Handle)))
    }

    fn full_name(&self) -> String {
        let name = self.name.to_string_lossy();
        match self.overload.to_bytes() {
            [] => name.into_owned(),
            overload => format!("{name}.{}", String::from_utf8_lossy(overload)),
        }
    }

    /// By libtorch's convention for names.
    fn writes(&self) -> Writes {
        match self.name.to_bytes().ends_with(b"_") {
            true => Writes::First,
            false => Writes::Results,
        }
    }
}

impl Arg<'_> {
    fn touch(&self) {
        match *self {
            Self::Tensor(tensor) | Self::SomeTensor(tensor) => tensor.touch(),
            Self::Tensors(tensors) => tensors.iter().for_each(|tensor| tensor.touch()),
            Self::OptionalTensors(tensors) => {
                tensors.iter().flatten().for_each(|tensor| tensor.touch());
            }
            _ => {}
        }
    }

    fn lower(&self) -> Result<StackValue, TorchError> {
        Ok(match *self {
            Self::Tensor(tensor) => handed_over(tensor)?,
            Self::Int(value) => value.cast_unsigned(),
            Self::SomeInt(value) => boxed(value.cast_unsigned())?,
            Self::Float(value) => value.to_bits(),
            Self::SomeFloat(value) => boxed(value.to_bits())?,
            Self::Bool(value) => u64::from(value),
            Self::SomeBool(value) => boxed(u64::from(value))?,
            Self::Bools(values) => list(values.iter().map(|value| Ok(u64::from(*value))))?,
            Self::SomeKind(kind) => boxed(u64::from(torch().codes.of_kind(kind).cast_unsigned()))?,
            Self::Ints(values) => ints(values)?,
            Self::SomeInts(values) => boxed(ints(values)?)?,
            Self::SomeTensor(tensor) => boxed(handed_over(tensor)?)?,
            Self::Tensors(tensors) => list(tensors.iter().map(|tensor| handed_over(tensor)))?,
            Self::OptionalTensors(tensors) => list(tensors.iter().map(|tensor| match tensor {
                Some(tensor) => boxed(handed_over(tensor)?),
                None => Ok(0),
            }))?,
            Self::None => 0,
        })
    }
}

/// A handle for libtorch to keep.
fn handed_over(tensor: &Tensor) -> Result<StackValue, TorchError> {
    let another = std::mem::ManuallyDrop::new(tensor.another_handle()?);
    Ok(another.raw() as StackValue)
}

/// A value in a box that libtorch deletes: what is given where an argument is optional.
fn boxed(value: StackValue) -> Result<StackValue, TorchError> {
    let torch = torch();
    let mut place: *mut StackValue = null_mut();
    match (
        torch.functions.torch_new_stable_ivalue,
        torch.functions._Znwm,
    ) {
        (Some(new), _) => {
            // SAFETY: `place` is writable.
            torch.check(unsafe { new(&mut place) }, "a box for an argument")?;
        }
        // SAFETY: libtorch deletes the box with the `operator delete` that belongs to this `operator new`.
        (None, Some(new)) => place = unsafe { new(size_of::<StackValue>()) }.cast(),
        (None, None) => unreachable!("one of the two was found when libtorch was opened"),
    }
    assert!(!place.is_null(), "libtorch made no box for an argument");
    // SAFETY: a new box is there for one value.
    unsafe { *place = value };
    Ok(place as StackValue)
}

fn ints(values: &[i64]) -> Result<StackValue, TorchError> {
    list(values.iter().map(|value| Ok(value.cast_unsigned())))
}

/// A list that libtorch deletes.
fn list(
    values: impl ExactSizeIterator<Item = Result<StackValue, TorchError>>,
) -> Result<StackValue, TorchError> {
    let torch = torch();
    let mut list = null_mut();
    // SAFETY: `list` is writable.
    let code = unsafe { (torch.functions.torch_new_list_reserve_size)(values.len(), &mut list) };
    torch.check(code, "a list")?;
    for value in values {
        // SAFETY: the list was made here, and takes over the value.
        let code = unsafe { (torch.functions.torch_list_push_back)(list, value?) };
        torch.check(code, "a list")?;
    }
    Ok(list as StackValue)
}
