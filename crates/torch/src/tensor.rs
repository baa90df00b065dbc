//! A tensor: a handle on one of libtorch's, and what it says of itself.

use std::ffi::c_void;
use std::fmt;
use std::ptr::{null, null_mut};

use crate::abi::{Code, Handle};
use crate::device::Device;
use crate::error::{TorchError, expect};
use crate::kind::Kind;
use crate::library::torch;
use crate::pretend;
use crate::recorder::{self, Action, Seen, Writes};

/// An array of numbers of one [`Kind`] on one [`Device`]. It is a handle: clones and views share the elements, which is why
/// operations that write take `&self`.
pub struct Tensor {
    /// libtorch's handle, whose lowest bit is free. It is set in tensors that are in host memory and say otherwise: see
    /// [`crate::pretend`].
    tagged: Handle,
}

/// See [`Tensor`].
const PRETENDS: usize = 1;

// SAFETY: libtorch's tensors are counted atomically and tied to no thread; this handle is the only one of its number.
unsafe impl Send for Tensor {}

impl Drop for Tensor {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and this is the last use of it.
        unsafe { (torch().functions.aoti_torch_delete_tensor_object)(self.raw()) };
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tensor {:?} of {:?} on {:?}",
            self.size(),
            self.kind(),
            self.device()
        )
    }
}

/// Anything that is a list of sizes.
pub trait Shape {
    /// The sizes, outermost first.
    fn sizes(&self) -> &[i64];
}

impl Shape for [i64] {
    fn sizes(&self) -> &[i64] {
        self
    }
}

impl<const N: usize> Shape for [i64; N] {
    fn sizes(&self) -> &[i64] {
        self
    }
}

impl Shape for Vec<i64> {
    fn sizes(&self) -> &[i64] {
        self
    }
}

impl<S: Shape + ?Sized> Shape for &S {
    fn sizes(&self) -> &[i64] {
        (**self).sizes()
    }
}

impl Tensor {
    /// Takes over a handle that libtorch has just handed out.
    #[inline]
    pub(crate) fn own(handle: Handle) -> Self {
        let tensor = Self { tagged: handle }.on(pretend::is_result());
        if recorder::is_on() {
            tensor.tell_made();
        }
        tensor
    }

    /// For whoever records: the last operator has made this tensor, or written to it.
    #[cold]
    pub(crate) fn tell_made(&self) {
        if let Some(seen) = self.seen() {
            recorder::made(&seen);
        }
    }

    /// `None` for a tensor that stands for none.
    fn seen(&self) -> Option<Seen> {
        let mut numel = 0;
        // SAFETY: the handle is alive; for an undefined tensor the function has an error.
        let code = unsafe { (torch().functions.aoti_torch_get_numel)(self.raw(), &mut numel) };
        if code != 0 {
            return None;
        }
        let sizes = self.size().iter().zip(self.stride());
        let elements: i64 = sizes
            .map(|(size, stride)| if *stride == 0 { (*size).min(1) } else { *size })
            .product();
        Some(Seen {
            address: self.data_ptr().addr(),
            bytes: elements as u64 * self.kind().elt_size_in_bytes() as u64,
            sizes: self.size().to_vec(),
            device: self.device(),
        })
    }

    /// For an operator that is about to be called.
    #[inline]
    pub(crate) fn handle(&self) -> Handle {
        self.touch();
        self.raw()
    }

    /// For libtorch to keep.
    #[inline]
    pub(crate) fn raw(&self) -> Handle {
        self.tagged.map_addr(|address| address & !PRETENDS)
    }

    /// This tensor is one of those that an operator is called with.
    #[inline]
    pub(crate) fn touch(&self) {
        if self.pretends() {
            pretend::touched();
        }
        if recorder::is_on()
            && let Some(seen) = self.seen()
        {
            recorder::given(seen);
        }
    }

    #[inline]
    pub(crate) fn pretends(&self) -> bool {
        self.tagged.addr() & PRETENDS != 0
    }

    /// The same tensor, on a pretended device or in host memory, whatever made it.
    #[inline]
    pub(crate) fn on(self, pretends: bool) -> Self {
        let handle = std::mem::ManuallyDrop::new(self).raw();
        Self {
            tagged: handle.map_addr(|address| address | usize::from(pretends)),
        }
    }

    /// Another handle on the same tensor.
    #[inline]
    pub fn shallow_clone(&self) -> Self {
        expect(self.another_handle())
    }

    #[inline]
    pub(crate) fn another_handle(&self) -> Result<Self, TorchError> {
        let mut handle = null_mut();
        // SAFETY: the handle is alive, and the other one writable.
        let code =
            unsafe { (torch().functions.aoti_torch_new_tensor_handle)(self.raw(), &mut handle) };
        torch().check(code, "a new handle")?;
        Ok(Self { tagged: handle }.on(self.pretends()))
    }

    /// Sizes, outermost first.
    #[inline]
    pub fn size(&self) -> &[i64] {
        self.extents(torch().functions.aoti_torch_get_sizes)
    }

    /// Elements to step over for one more in each dimension.
    #[inline]
    pub fn stride(&self) -> &[i64] {
        self.extents(torch().functions.aoti_torch_get_strides)
    }

    #[inline]
    fn extents(&self, get: unsafe extern "C" fn(Handle, *mut *const i64) -> Code) -> &[i64] {
        let mut pointer = null();
        // SAFETY: the handle is alive and defined.
        expect(torch().check(unsafe { get(self.raw(), &mut pointer) }, "sizes"));
        match self.dim() {
            0 => &[],
            // SAFETY: libtorch returns a pointer to as many numbers as there are dimensions. They live in the tensor, and no
            // function of this crate changes a tensor's sizes or strides (results are checked before they are written to).
            dim => unsafe { std::slice::from_raw_parts(pointer, dim) },
        }
    }

    /// Number of dimensions.
    #[inline]
    pub fn dim(&self) -> usize {
        self.number(torch().functions.aoti_torch_get_dim)
    }

    /// Number of elements.
    #[inline]
    pub fn numel(&self) -> usize {
        self.number(torch().functions.aoti_torch_get_numel)
    }

    #[inline]
    fn number(&self, get: unsafe extern "C" fn(Handle, *mut i64) -> Code) -> usize {
        let mut number = 0;
        // SAFETY: the handle is alive and defined.
        expect(torch().check(unsafe { get(self.raw(), &mut number) }, "a number"));
        number as usize
    }

    /// What the elements are.
    ///
    /// # Panics
    /// For a kind that [`Kind`] has no name for, which no function of this crate makes.
    #[inline]
    pub fn kind(&self) -> Kind {
        let mut code = 0;
        // SAFETY: the handle is alive and defined.
        let get = unsafe { (torch().functions.aoti_torch_get_dtype)(self.raw(), &mut code) };
        expect(torch().check(get, "the kind"));
        match torch().codes.kind(code) {
            Some(kind) => kind,
            None => panic!("libtorch's kind {code} is none that Tandem uses"),
        }
    }

    /// Where the elements are.
    #[inline]
    pub fn device(&self) -> Device {
        if self.pretends() {
            return Device::Cuda(0);
        }
        let torch = torch();
        let (mut code, mut index) = (0, 0);
        // SAFETY: the handle is alive and defined.
        unsafe {
            let get = (torch.functions.aoti_torch_get_device_type)(self.raw(), &mut code);
            expect(torch.check(get, "the device"));
            if code != torch.codes.cuda {
                return Device::Cpu;
            }
            let get = (torch.functions.aoti_torch_get_device_index)(self.raw(), &mut index);
            expect(torch.check(get, "the device"));
        }
        Device::Cuda(usize::try_from(index).unwrap_or(0))
    }

    /// The address of the first element, for the host to read and write there. All of the host's accesses to elements go
    /// through here.
    ///
    /// # Panics
    /// In debug builds, when the tensor is on another device: the address would mean nothing to the host.
    #[inline]
    #[track_caller]
    pub fn host_ptr(&self) -> *mut c_void {
        debug_assert!(
            self.device() == Device::Cpu,
            "the host cannot access {self:?}: copy it to the CPU first"
        );
        self.data_ptr()
    }

    /// The address of the first element, on the tensor's device: to be compared, and handed to what works on that device.
    #[inline]
    pub fn data_ptr(&self) -> *mut c_void {
        let mut pointer = null_mut();
        // SAFETY: the handle is alive and defined.
        let get = unsafe { (torch().functions.aoti_torch_get_data_ptr)(self.raw(), &mut pointer) };
        expect(torch().check(get, "the address"));
        pointer
    }

    /// Whether the elements lie one after another, the last dimension's side by side.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        let mut answer = false;
        // SAFETY: the handle is alive and defined.
        let get = unsafe { (torch().functions.aoti_torch_is_contiguous)(self.raw(), &mut answer) };
        expect(torch().check(get, "the layout"));
        answer
    }

    /// An operator overwrites this tensor.
    #[inline]
    pub(crate) fn over(&self) -> Writes {
        match recorder::is_on() {
            true => Writes::Over(self.data_ptr().addr()),
            false => Writes::Results,
        }
    }

    /// The outcome of an operator that has overwritten this tensor.
    #[inline]
    pub(crate) fn overwritten(&self, code: Code, operator: &str) -> Result<(), TorchError> {
        called(code, operator, self.over(), || Action::Compute)
    }

    /// A tensor over the same elements, whose handle `call` writes. It is no operator.
    #[inline]
    pub(crate) fn view_by(
        &self,
        what: &str,
        call: impl FnOnce(Handle, *mut Handle) -> Code,
    ) -> Result<Self, TorchError> {
        let mut handle = null_mut();
        let code = call(self.raw(), &mut handle);
        torch().check(code, what)?;
        Ok(Self { tagged: handle }.on(self.pretends()))
    }

    /// The number of a dimension that may be counted from the end.
    #[track_caller]
    pub(crate) fn axis(&self, dim: i64) -> usize {
        let dims = self.dim() as i64;
        assert!(
            (-dims..dims).contains(&dim),
            "there is no dimension {dim} in {self:?}"
        );
        (if dim < 0 { dim + dims } else { dim }) as usize
    }
}

/// The outcome of an operator, which tells whoever records.
#[inline]
pub(crate) fn called(
    code: Code,
    operator: &str,
    writes: Writes,
    action: impl FnOnce() -> Action,
) -> Result<(), TorchError> {
    pretend::called();
    if recorder::is_on() {
        recorder::called(operator, writes, action());
    }
    torch().check(code, operator)
}

/// A tensor that an operator, `call`, writes a handle of.
#[inline]
pub(crate) fn new_tensor(
    operator: &str,
    call: impl FnOnce(*mut Handle) -> Code,
) -> Result<Tensor, TorchError> {
    let mut handle = null_mut();
    let code = call(&mut handle);
    called(code, operator, Writes::Results, || Action::Compute)?;
    Ok(Tensor::own(handle))
}
