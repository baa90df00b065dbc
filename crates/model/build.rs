//! Lets this package's binaries and tests find libtorch from any directory, without LD_LIBRARY_PATH.
fn main() {
    // torch-sys (`links = "tch"`) tells its direct dependents where it found libtorch.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
