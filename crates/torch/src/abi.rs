//! The C functions of libtorch, as tables of pointers that are looked up by name in whatever libtorch is loaded.
//!
//! Each signature stands here as in PyTorch's headers. From 2.9 to 2.15 none of them changed.

#![allow(non_snake_case, reason = "fields have the functions' own names")]

use std::ffi::{c_char, c_void};

use crate::kind::Kind;

/// A tensor, a list, a guard: something that libtorch owns and we name.
pub(crate) type Handle = *mut c_void;

/// What a C function returns: 0 for success.
pub(crate) type Code = i32;

/// A value on the dispatcher's stack: a number, a handle, or a pointer to one of these.
pub(crate) type StackValue = u64;

/// Finds a symbol by name.
pub(crate) type FindSymbol<'a> = &'a dyn Fn(&str) -> Option<*mut c_void>;

/// Declares a struct of function pointers: those under `required` must be there, those under `optional` may be.
macro_rules! functions {
    (
        $(#[$meta:meta])* $table:ident, prefix $prefix:literal;
        required { $($name:ident: fn($($argument:ty),* $(,)?) $(-> $result:ty)?;)* }
        optional { $($maybe:ident: fn($($maybe_argument:ty),* $(,)?) $(-> $maybe_result:ty)?;)* }
    ) => {
        $(#[$meta])*
        pub(crate) struct $table {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub(crate) $maybe: Option<unsafe extern "C" fn($($maybe_argument),*) $(-> $maybe_result)?>,)*
        }

        impl $table {
            /// Looks all functions up; the names of those that are missing where some are.
            ///
            /// # Safety
            /// `find` returns functions of the libtorch whose headers the signatures are taken from.
            pub(crate) unsafe fn resolve(find: FindSymbol<'_>) -> Result<Self, Vec<String>> {
                let mut missing = Vec::new();
                $(
                    let name = concat!($prefix, stringify!($name));
                    let $name = find(name);
                    if $name.is_none() {
                        missing.push(name.to_owned());
                    }
                )*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    $(
                        // SAFETY: the symbol is the function of this name (not null: checked above), and the caller vouches
                        // for the signature; both types are one pointer wide.
                        $name: unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >($name.unwrap_or(std::ptr::null_mut()))
                        },
                    )*
                    $(
                        // SAFETY: as above; a missing one stays `None`.
                        $maybe: find(concat!($prefix, stringify!($maybe))).map(|symbol| unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($maybe_argument),*) $(-> $maybe_result)?,
                            >(symbol)
                        }),
                    )*
                })
            }
        }
    };
}

functions! {
    /// What does not depend on the device.
    Functions, prefix "";
    required {
        aoti_torch_abi_version: fn() -> u64;
        aoti_torch_grad_mode_set_enabled: fn(bool);
        aoti_torch_delete_tensor_object: fn(Handle) -> Code;
        aoti_torch_new_tensor_handle: fn(Handle, *mut Handle) -> Code;
        aoti_torch_new_uninitialized_tensor: fn(*mut Handle) -> Code;
        aoti_torch_is_contiguous: fn(Handle, *mut bool) -> Code;
        aoti_torch_get_data_ptr: fn(Handle, *mut *mut c_void) -> Code;
        aoti_torch_get_dim: fn(Handle, *mut i64) -> Code;
        aoti_torch_get_numel: fn(Handle, *mut i64) -> Code;
        aoti_torch_get_sizes: fn(Handle, *mut *const i64) -> Code;
        aoti_torch_get_strides: fn(Handle, *mut *const i64) -> Code;
        aoti_torch_get_dtype: fn(Handle, *mut i32) -> Code;
        aoti_torch_get_device_type: fn(Handle, *mut i32) -> Code;
        aoti_torch_get_device_index: fn(Handle, *mut i32) -> Code;
        // Number of dimensions, sizes, strides, kind, device's type and index, result.
        aoti_torch_empty_strided: fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Code;
        // Tensor, number of dimensions, sizes, strides, elements from the tensor's first on, result.
        aoti_torch__reinterpret_tensor: fn(Handle, i64, *const i64, *const i64, i64, *mut Handle) -> Code;
        aoti_torch_copy_: fn(Handle, Handle, i32) -> Code;
        aoti_torch_zero_: fn(Handle) -> Code;
        aoti_torch_aten_fill__Scalar: fn(Handle, f64) -> Code;
        aoti_torch_scalar_to_tensor_float64: fn(f64, *mut Handle) -> Code;
        aoti_torch_scalar_to_tensor_int64: fn(i64, *mut Handle) -> Code;
        // Operator, overload, stack, the release whose conventions the stack follows.
        torch_call_dispatcher: fn(*const c_char, *const c_char, *mut StackValue, u64) -> Code;
        torch_new_list_reserve_size: fn(usize, *mut Handle) -> Code;
        torch_list_push_back: fn(Handle, StackValue) -> Code;
        aoti_torch_device_type_cpu: fn() -> i32;
        aoti_torch_device_type_cuda: fn() -> i32;
        aoti_torch_dtype_uint8: fn() -> i32;
        aoti_torch_dtype_int32: fn() -> i32;
        aoti_torch_dtype_int64: fn() -> i32;
        aoti_torch_dtype_float16: fn() -> i32;
        aoti_torch_dtype_float32: fn() -> i32;
        aoti_torch_dtype_float64: fn() -> i32;
        aoti_torch_dtype_bool: fn() -> i32;
        aoti_torch_dtype_bfloat16: fn() -> i32;
        // `at::set_num_threads(int)`. A C++ name, but the same in every release, and there is no C function for it.
        _ZN2at15set_num_threadsEi: fn(i32);
    }
    optional {
        // From 2.13 on.
        torch_exception_get_what_without_backtrace: fn() -> *const c_char;
        torch_new_stable_ivalue: fn(*mut *mut StackValue) -> Code;
        // libstdc++'s `operator new(size_t)`: before 2.13 the caller allocates the boxes that libtorch deletes.
        _Znwm: fn(usize) -> *mut c_void;
    }
}

/// The operators of one kind of device. The same functions exist for each, under names of its own.
macro_rules! device_functions {
    ($table:ident, $prefix:literal, $meta:literal) => {
        functions! {
            #[doc = $meta]
            $table, prefix $prefix;
            required {
                add_Tensor: fn(Handle, Handle, f64, *mut Handle) -> Code;
                add_Scalar: fn(Handle, f64, f64, *mut Handle) -> Code;
                mul_Tensor: fn(Handle, Handle, *mut Handle) -> Code;
                mul_Scalar: fn(Handle, f64, *mut Handle) -> Code;
                mm_out: fn(Handle, Handle, Handle) -> Code;
                addmm_out: fn(Handle, Handle, Handle, Handle, f64, f64) -> Code;
                cat: fn(*const Handle, i64, i64, *mut Handle) -> Code;
                reshape: fn(Handle, *const i64, i64, *mut Handle) -> Code;
                view_dtype: fn(Handle, i32, *mut Handle) -> Code;
            }
            optional {}
        }
    };
}

device_functions!(CpuOperators, "aoti_torch_cpu_", "Operators on the CPU.");
device_functions!(
    CudaOperators,
    "aoti_torch_cuda_",
    "Operators on CUDA devices."
);

functions! {
    /// What only the CPU has.
    CpuFunctions, prefix "aoti_torch_cpu_";
    required {
        // Query, key, value, dropout, causal, mask, scale; output, logsumexp.
        _scaled_dot_product_flash_attention_for_cpu: fn(
            Handle, Handle, Handle, f64, i32, *const Handle, *const f64, *mut Handle, *mut Handle,
        ) -> Code;
        // Output's gradient, query, key, value, output, logsumexp, dropout, causal, mask, scale; three gradients.
        _scaled_dot_product_flash_attention_for_cpu_backward: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, f64, i32, *const Handle, *const f64, *mut Handle,
            *mut Handle, *mut Handle,
        ) -> Code;
    }
    optional {}
}

functions! {
    /// What only `libtorch_cuda.so` and the CUDA runtime that it brings have.
    CudaFunctions, prefix "";
    required {
        aoti_torch_create_cuda_guard: fn(i32, *mut Handle) -> Code;
        aoti_torch_delete_cuda_guard: fn(Handle) -> Code;
        aoti_torch_get_current_cuda_stream: fn(i32, *mut *mut c_void) -> Code;
        torch_cuda_stream_synchronize: fn(*mut c_void, i32) -> Code;
        // Query, key, value, two lists of sequence starts, two longest sequences, dropout, causal, debug mask, scale, window to
        // the left and right, keys in use, ALiBi slopes; output, logsumexp, two of random state, debug mask.
        aoti_torch_cuda__flash_attention_forward: fn(
            Handle, Handle, Handle, *const Handle, *const Handle, i64, i64, f64, i32, i32, *const f64, *const i64,
            *const i64, *const Handle, *const Handle, *mut Handle, *mut Handle, *mut Handle, *mut Handle, *mut Handle,
        ) -> Code;
        // Output's gradient, query, key, value, output, logsumexp, two lists of sequence starts, two longest sequences,
        // dropout, causal, two of random state, scale, window to the left and right; three gradients.
        aoti_torch_cuda__flash_attention_backward: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, i64, i64, f64, i32, Handle, Handle,
            *const f64, *const i64, *const i64, *mut Handle, *mut Handle, *mut Handle,
        ) -> Code;
        cudaGetDeviceCount: fn(*mut i32) -> i32;
        cudaMemGetInfo: fn(*mut usize, *mut usize) -> i32;
    }
    optional {
        // An fp32 product of bf16 matrices, from 2.11 on: out, left, right, kind.
        aoti_torch_cuda_mm_dtype_out: fn(Handle, Handle, Handle, i32) -> Code;
    }
}

/// What libtorch calls kinds and devices in numbers.
pub(crate) struct Codes {
    pub(crate) cpu: i32,
    pub(crate) cuda: i32,
    kinds: [i32; Kind::ALL.len()],
}

impl Codes {
    pub(crate) fn read(functions: &Functions) -> Self {
        // SAFETY: these functions return a constant.
        let kind = |kind| unsafe {
            match kind {
                Kind::Uint8 => (functions.aoti_torch_dtype_uint8)(),
                Kind::Int => (functions.aoti_torch_dtype_int32)(),
                Kind::Int64 => (functions.aoti_torch_dtype_int64)(),
                Kind::Half => (functions.aoti_torch_dtype_float16)(),
                Kind::Float => (functions.aoti_torch_dtype_float32)(),
                Kind::Double => (functions.aoti_torch_dtype_float64)(),
                Kind::Bool => (functions.aoti_torch_dtype_bool)(),
                Kind::BFloat16 => (functions.aoti_torch_dtype_bfloat16)(),
            }
        };
        Self {
            // SAFETY: as above.
            cpu: unsafe { (functions.aoti_torch_device_type_cpu)() },
            // SAFETY: as above.
            cuda: unsafe { (functions.aoti_torch_device_type_cuda)() },
            kinds: Kind::ALL.map(kind),
        }
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> i32 {
        self.kinds[kind as usize]
    }

    pub(crate) fn kind(&self, code: i32) -> Option<Kind> {
        let index = self.kinds.iter().position(|&kind| kind == code)?;
        Some(Kind::ALL[index])
    }
}
