//! Running a kernel with the widest vectors that this processor has, on as many threads as it was given.
//!
//! Kernels are plain loops. The same source is compiled once per instruction set (the compiler vectorises it), and the
//! set is chosen when the program runs.

use rayon::prelude::*;

pub(crate) use crate::instruction_set::InstructionSet;

/// One task of an operation: a struct of slices, and the loop over them.
pub(crate) trait Kernel {
    /// What the task returns besides what it writes.
    type Output;

    /// The loop. Implementations are `#[inline(always)]`, as is all that they call: only then is the code compiled for
    /// the instruction set of its caller.
    fn run<I: InstructionSet>(self) -> Self::Output;
}

/// What every processor of the target has.
#[derive(Clone, Copy)]
struct Baseline;

impl InstructionSet for Baseline {
    const FUSES: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
}

/// Runs every task, in parallel when there is more than one thread. With one thread the tasks run here, in order:
/// a worker thread of the pool would only add a hand-over.
pub(crate) fn for_each<K: Kernel<Output = ()> + Send>(tasks: impl Iterator<Item = K>) {
    if single_threaded() {
        tasks.for_each(run);
    } else {
        tasks.collect::<Vec<_>>().into_par_iter().for_each(run);
    }
}

/// As [`for_each`]; the outputs in the order of the tasks.
pub(crate) fn map<K: Kernel<Output: Send> + Send>(
    tasks: impl Iterator<Item = K>,
) -> Vec<K::Output> {
    in_parallel(tasks, run)
}

/// The results of `work` for all items, in their order, by all threads as in [`for_each`]; for work that is more than one
/// kernel.
pub(crate) fn in_parallel<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    if single_threaded() {
        items.map(work).collect()
    } else {
        let items = items.collect::<Vec<_>>().into_par_iter();
        items.map(&work).collect()
    }
}

fn single_threaded() -> bool {
    rayon::current_num_threads() == 1
}

/// Runs one task here.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        match x86::widest() {
            // SAFETY: the processor has been asked for every feature that the function enables.
            x86::Set::Avx512Bf16 => unsafe { x86::run_avx512_bf16(kernel) },
            // SAFETY: as above.
            x86::Set::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            x86::Set::Avx2 => unsafe { x86::run_avx2(kernel) },
            x86::Set::Baseline => kernel.run::<Baseline>(),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    kernel.run::<Baseline>()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    use half::bf16;

    use super::{InstructionSet, Kernel};
    use crate::avx512_bf16::Avx512Bf16;
    use crate::element::Element;
    use crate::instruction_set::{LANES, round_each};

    #[derive(Clone, Copy)]
    struct Wide;

    impl InstructionSet for Wide {
        const FUSES: bool = true;
    }

    /// [`Wide`], and an instruction that rounds. Nothing but [`run_avx512_bf16`] gives it to a kernel.
    #[derive(Clone, Copy)]
    struct WideBf16;

    impl InstructionSet for WideBf16 {
        const FUSES: bool = true;

        #[inline(always)]
        fn round<T: Element>(values: &[f32; LANES], rounded: &mut [T; LANES]) {
            match T::as_bf16(rounded) {
                // SAFETY: this runs within `run_avx512_bf16`, whose caller has asked the processor.
                Some(rounded) => unsafe { round_to_bf16(values, rounded) },
                None => round_each(values, rounded),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round_to_bf16(values: &[f32; LANES], rounded: &mut [bf16; LANES]) {
        let (values, _) = values.as_chunks::<32>();
        let (rounded, _) = rounded.as_chunks_mut::<32>();
        for (values, rounded) in values.iter().zip(rounded) {
            // SAFETY: there are 32 values, and room for as many.
            unsafe {
                let low = _mm512_loadu_ps(values.as_ptr());
                let high = _mm512_loadu_ps(values.as_ptr().add(16));
                let both = _mm512_cvtne2ps_pbh(high, low);
                rounded
                    .as_mut_ptr()
                    .cast::<__m512bh>()
                    .write_unaligned(both);
            }
        }
    }

    /// The sets that kernels are compiled for; each has what is in those before it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub(super) enum Set {
        Baseline,
        Avx2,
        Avx512,
        Avx512Bf16,
    }

    /// The last that this processor has. It is asked once: kernels that are short run often.
    pub(super) fn widest() -> Set {
        static WIDEST: OnceLock<Set> = OnceLock::new();
        *WIDEST.get_or_init(|| {
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (has_avx2, has_avx512, Avx512Bf16::detect().is_some()) {
                (true, true, true) => Set::Avx512Bf16,
                (true, true, false) => Set::Avx512,
                (true, false, _) => Set::Avx2,
                (false, ..) => Set::Baseline,
            }
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<WideBf16>()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Wide>()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Wide>()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The outputs of one task per instruction set that this processor has, each with its name.
    pub fn run_on_each_set<K: Kernel>(make: impl Fn() -> K) -> Vec<(&'static str, K::Output)> {
        let mut outputs = vec![("baseline", make().run::<Baseline>())];
        #[cfg(target_arch = "x86_64")]
        {
            let widest = x86::widest();
            if widest >= x86::Set::Avx2 {
                // SAFETY: the processor has the features.
                outputs.push(("avx2", unsafe { x86::run_avx2(make()) }));
            }
            if widest >= x86::Set::Avx512 {
                // SAFETY: the processor has the features.
                outputs.push(("avx512", unsafe { x86::run_avx512(make()) }));
            }
            if widest >= x86::Set::Avx512Bf16 {
                // SAFETY: the processor has the features.
                outputs.push(("avx512-bf16", unsafe { x86::run_avx512_bf16(make()) }));
            }
        }
        outputs
    }
}
