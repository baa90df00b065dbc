//! Lets this package's binaries and tests find libtorch from any directory, without LD_LIBRARY_PATH.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys, a direct dependency, says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
