//! The libtorch of this process: opened once, never closed.

use std::ffi::{CStr, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

use crate::abi::{
    Code, Codes, CpuFunctions, CpuOperators, CudaFunctions, CudaOperators, Functions,
};
use crate::error::TorchError;
use crate::locate::{self, Found, Origin, Surroundings};
use crate::version::{OLDEST, Version};

/// A libtorch that is loaded.
pub struct Torch {
    found: Found,
    version: Version,
    /// As `aoti_torch_abi_version` has it.
    pub(crate) abi_version: u64,
    pub(crate) functions: Functions,
    pub(crate) cpu_operators: CpuOperators,
    pub(crate) cpu: CpuFunctions,
    pub(crate) codes: Codes,
    cuda: OnceLock<Result<Cuda, TorchError>>,
}

/// The part for CUDA, which is loaded when it is first asked for.
pub(crate) struct Cuda {
    pub(crate) operators: CudaOperators,
    pub(crate) functions: CudaFunctions,
}

/// libtorch is one per process, so this is too.
static TORCH: OnceLock<Torch> = OnceLock::new();

/// Finds and loads libtorch; or returns the one that this process has already, whatever `surroundings` say.
pub(crate) fn loaded(surroundings: &Surroundings) -> Result<&'static Torch, TorchError> {
    match TORCH.get() {
        Some(torch) => Ok(torch),
        None => {
            let torch = load(locate::find(surroundings)?)?;
            Ok(TORCH.get_or_init(|| torch))
        }
    }
}

/// Threads that libtorch uses inside one operation.
pub fn set_num_threads(threads: usize) {
    let threads = i32::try_from(threads.max(1)).unwrap_or(i32::MAX);
    // SAFETY: takes any positive number.
    unsafe { (torch().functions._ZN2at15set_num_threadsEi)(threads) }
}

/// The libtorch of this process, opened now if it was not yet.
#[inline]
#[track_caller]
pub(crate) fn torch() -> &'static Torch {
    match TORCH.get() {
        Some(torch) => torch,
        None => first(),
    }
}

#[cold]
#[track_caller]
fn first() -> &'static Torch {
    crate::error::expect(loaded(&Surroundings::read()))
}

fn load(found: Found) -> Result<Torch, TorchError> {
    let library = open_library(&found.libraries.join("libtorch_cpu.so"))?;
    refuse_mixture(&found.libraries)?;
    let find = |name: &str| symbol(library, name);
    let incomplete = |missing| TorchError::Incomplete {
        folder: found.libraries.clone(),
        missing,
    };
    // Releases before lists for the dispatcher lack functions of the table: say that they are old rather than which.
    let too_old = |version: Version| TorchError::TooOld {
        folder: found.libraries.clone(),
        version,
    };
    if let Some(version) = find("aoti_torch_abi_version").map(|function| {
        // SAFETY: the function takes nothing and returns the number, in every release that has it.
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u64>(function)() }
    }) && Version::from_abi(version) < OLDEST
    {
        return Err(too_old(Version::from_abi(version)));
    }
    // SAFETY: the library is a libtorch from `OLDEST` on, whose functions of these names have the signatures of the tables.
    let (functions, cpu_operators, cpu) = unsafe {
        (
            Functions::resolve(&find).map_err(incomplete)?,
            CpuOperators::resolve(&find).map_err(incomplete)?,
            CpuFunctions::resolve(&find).map_err(incomplete)?,
        )
    };
    if functions.torch_new_stable_ivalue.is_none() && functions._Znwm.is_none() {
        return Err(incomplete(vec!["operator new".to_owned()]));
    }
    // SAFETY: no arguments.
    let abi_version = unsafe { (functions.aoti_torch_abi_version)() };
    // No tensor here ever requires a gradient. (This setting is the thread's own; it saves libtorch some work.)
    // SAFETY: any value will do.
    unsafe { (functions.aoti_torch_grad_mode_set_enabled)(false) };
    Ok(Torch {
        version: Version::from_abi(abi_version),
        abi_version,
        codes: Codes::read(&functions),
        functions,
        cpu_operators,
        cpu,
        cuda: OnceLock::new(),
        found,
    })
}

impl Torch {
    /// The release, as the library itself says.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The folder of the libraries.
    pub fn libraries(&self) -> &Path {
        &self.found.libraries
    }

    /// Why this one.
    pub fn origin(&self) -> &Origin {
        &self.found.origin
    }

    /// What came before it and did not do, each a sentence.
    pub fn passed_over(&self) -> &[String] {
        &self.found.passed_over
    }

    /// Whether there is a part for CUDA beside it. Says nothing of devices.
    pub fn has_cuda_part(&self) -> bool {
        self.cuda_library().is_file()
    }

    fn cuda_library(&self) -> PathBuf {
        self.found.libraries.join("libtorch_cuda.so")
    }

    /// The part for CUDA, loaded now if it was not yet.
    pub(crate) fn cuda(&self) -> Result<&Cuda, TorchError> {
        let cuda = self.cuda.get_or_init(|| self.load_cuda());
        cuda.as_ref().map_err(Clone::clone)
    }

    fn load_cuda(&self) -> Result<Cuda, TorchError> {
        if !self.has_cuda_part() {
            return Err(TorchError::NoCudaPart {
                folder: self.found.libraries.clone(),
                version: self.version,
            });
        }
        // It registers its kernels when it is loaded.
        let library = open_library(&self.cuda_library())?;
        refuse_mixture(&self.found.libraries)?;
        let find = |name: &str| symbol(library, name);
        let incomplete = |missing| TorchError::Incomplete {
            folder: self.found.libraries.clone(),
            missing,
        };
        // SAFETY: as in `load`; the library lies beside the one of a release that was checked.
        unsafe {
            Ok(Cuda {
                operators: CudaOperators::resolve(&find).map_err(incomplete)?,
                functions: CudaFunctions::resolve(&find).map_err(incomplete)?,
            })
        }
    }

    /// Turns a C function's code into a result, with libtorch's message.
    #[inline]
    pub(crate) fn check(&self, code: Code, operation: &str) -> Result<(), TorchError> {
        if code == 0 {
            Ok(())
        } else {
            Err(self.failure(operation))
        }
    }

    #[cold]
    fn failure(&self, operation: &str) -> TorchError {
        let what = self.functions.torch_exception_get_what_without_backtrace;
        let message = what.and_then(|what| {
            // SAFETY: returns this thread's last message, or null.
            let text = unsafe { what() };
            if text.is_null() {
                return None;
            }
            // SAFETY: a C string that stays until this thread's next call.
            let text = unsafe { CStr::from_ptr(text) };
            Some(text.to_string_lossy().into_owned())
        });
        TorchError::Operation {
            operation: operation.to_owned(),
            message: message.unwrap_or_else(|| {
                format!(
                    "failed; libtorch {} has printed why on standard error",
                    self.version
                )
            }),
        }
    }
}

/// The C function for an operator, of the device that a tensor is on.
macro_rules! device_operator {
    ($tensor:expr, $name:ident) => {
        match $tensor.device() {
            $crate::Device::Cpu => $crate::library::torch().cpu_operators.$name,
            $crate::Device::Cuda(_) if $tensor.pretends() => {
                $crate::library::torch().cpu_operators.$name
            }
            $crate::Device::Cuda(_) => {
                $crate::error::expect($crate::library::torch().cuda())
                    .operators
                    .$name
            }
        }
    };
}
pub(crate) use device_operator;

/// Loads a library with all that it needs. It stays for as long as the process lives.
fn open_library(path: &Path) -> Result<&'static Library, TorchError> {
    // SAFETY: loading runs the library's initialisers, which is what a program linked against libtorch does too.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) };
    match library {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        Err(error) => Err(TorchError::DoesNotLoad {
            path: path.to_path_buf(),
            reason: loader_says(&error, path),
        }),
    }
}

/// The loader's words, without the path that stands in the sentence already.
fn loader_says(error: &libloading::Error, path: &Path) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    let path = format!("{}: ", path.display());
    text.trim_start_matches(&path).to_owned()
}

fn symbol(library: &Library, name: &str) -> Option<*mut c_void> {
    let name: Vec<u8> = name.bytes().chain([0]).collect();
    // SAFETY: only the address is taken here.
    let symbol = unsafe { library.get::<*mut c_void>(name.as_slice()) }.ok()?;
    let address = symbol.into_raw();
    (!address.is_null()).then_some(address)
}

/// Libraries of libtorch that a second installation would bring as well.
const OWN_LIBRARIES: [&str; 4] = [
    "libtorch_cpu.so",
    "libc10.so",
    "libtorch_cuda.so",
    "libc10_cuda.so",
];

/// Errors when one of libtorch's libraries was loaded from another folder than `libraries`.
fn refuse_mixture(libraries: &Path) -> Result<(), TorchError> {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return Ok(());
    };
    match elsewhere(&maps, libraries) {
        None => Ok(()),
        Some(other) => Err(TorchError::Mixed {
            used: libraries.to_path_buf(),
            other,
        }),
    }
}

/// A library of libtorch in these memory maps that is not in `libraries`.
fn elsewhere(maps: &str, libraries: &Path) -> Option<PathBuf> {
    let used = libraries.canonicalize().ok()?;
    maps.lines()
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])))
        .filter(|path| OWN_LIBRARIES.iter().any(|name| path.ends_with(name)))
        .find(|path| path.parent() != Some(&used))
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_another_installation_is_noticed() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let used = folder.path().canonicalize().expect("exists");
        let line =
            |path: &Path| format!("7f00-7f01 r-xp 00000000 08:01 123   {}\n", path.display());
        let own = line(&used.join("libtorch_cpu.so")) + &line(&used.join("libc10.so"));
        assert_eq!(elsewhere(&own, folder.path()), None);
        let other = Path::new("/opt/other/libc10.so");
        let mixed = own + &line(Path::new("/lib/libc.so.6")) + &line(other);
        assert_eq!(elsewhere(&mixed, folder.path()), Some(other.to_path_buf()));
    }

    #[test]
    fn what_does_not_load_is_named_with_the_loaders_words() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let library = folder.path().join("libtorch_cpu.so");
        fs::write(&library, "not a library").expect("write");
        let found = Found {
            libraries: folder.path().to_path_buf(),
            origin: Origin::Setup,
            version: None,
            passed_over: Vec::new(),
        };
        let Err(error) = load(found) else {
            panic!("it is no library");
        };
        let text = error.to_string();
        assert!(text.contains("libtorch_cpu.so does not load: "), "{text}");
        assert_eq!(text.matches("libtorch_cpu.so").count(), 1, "{text}");
    }
}
