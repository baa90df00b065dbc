//! The C++ compiler: torch-sys compiles a layer of C++ between Rust and libtorch, which takes minutes, so what would
//! make that fail is found out first.
//!
//! A very small program is compiled once and serves two questions: whether the compiler works, and whether libtorch
//! loads on this machine with all that it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Loads the library named by its argument; prints the loader's complaint and fails if that does not work.
const PROGRAM: &str = r#"
#include <dlfcn.h>
#include <cstdio>
#include <string>
int main(int argc, char** argv) {
    std::string library = argc > 1 ? argv[1] : "";
    if (library.empty() || dlopen(library.c_str(), RTLD_NOW)) return 0;
    std::puts(dlerror());
    return 1;
}
"#;

/// A C++ compiler that has compiled [`PROGRAM`].
#[derive(Debug)]
pub struct Toolchain {
    program: PathBuf,
}

impl Toolchain {
    /// Compiles the program into `directory`.
    pub fn probe(compiler: &Path, directory: &Path) -> Result<Self> {
        let install = "Install one (on Debian and Ubuntu: apt install g++), or set CXX to yours";
        let source = directory.join("probe.cpp");
        let program = directory.join("probe");
        fs::write(&source, PROGRAM)
            .with_context(|| format!("cannot write {}", source.display()))?;
        let output = Command::new(compiler)
            .arg("-std=c++17")
            .arg(&source)
            .arg("-o")
            .arg(&program)
            // Tandem's binaries link the OpenMP runtime: compilers without GCC beside them often lack it.
            .args(["-ldl", "-lgomp"])
            .output();
        let _ = fs::remove_file(&source);
        match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "there is no C++ compiler (`{}`), and building against libtorch needs one. {install}",
                compiler.display()
            ),
            Err(error) => bail!(
                "the C++ compiler `{}` does not start: {error}",
                compiler.display()
            ),
            Ok(output) if !output.status.success() => {
                let complaint = String::from_utf8_lossy(&output.stderr);
                if complaint.contains("gomp") {
                    bail!(
                        "the C++ compiler `{}` finds no OpenMP runtime (libgomp). It comes with GCC: on Debian and \
                         Ubuntu, apt install g++",
                        compiler.display()
                    );
                }
                bail!(
                    "the C++ compiler `{}` cannot compile a small C++17 program. {install}. It says:\n{}",
                    compiler.display(),
                    complaint.trim()
                )
            }
            Ok(_) => Ok(Self { program }),
        }
    }

    /// Errors unless the libraries in `libtorch` load on this machine, as they will in Tandem's own binaries: without
    /// LD_LIBRARY_PATH.
    pub fn check_loads(&self, libtorch: &Path) -> Result<()> {
        let library = libtorch.join("lib/libtorch_cpu.so");
        let output = Command::new(&self.program)
            .arg(&library)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .context("cannot run the program that tries libtorch")?;
        if !output.status.success() {
            bail!(
                "libtorch does not load on this machine ({} {}): {}",
                std::env::consts::OS,
                std::env::consts::ARCH,
                String::from_utf8_lossy(&output.stdout).trim()
            );
        }
        Ok(())
    }
}

impl Drop for Toolchain {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let error = Toolchain::probe(Path::new("no-such-compiler"), directory.path())
            .expect_err("there is no such compiler");
        let text = error.to_string();
        assert!(
            text.contains("no-such-compiler") && text.contains("apt install g++"),
            "{text}"
        );
    }

    #[test]
    fn a_compiler_that_fails_is_quoted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let error = Toolchain::probe(Path::new("false"), directory.path())
            .expect_err("`false` compiles nothing");
        assert!(
            error
                .to_string()
                .contains("cannot compile a small C++17 program"),
            "{error}"
        );
    }

    #[test]
    fn a_library_that_does_not_load_is_quoted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let libtorch = directory.path();
        fs::create_dir(libtorch.join("lib")).expect("create");
        fs::write(libtorch.join("lib/libtorch_cpu.so"), "not a library").expect("write");
        let toolchain = Toolchain::probe(Path::new("c++"), libtorch).expect("a working compiler");
        let error = toolchain.check_loads(libtorch).expect_err("not a library");
        assert!(
            error.to_string().contains("libtorch_cpu.so")
                && error.to_string().contains("does not load"),
            "{error}"
        );
    }
}
