//! Whether the libraries of a libtorch load on this machine, with all that they need.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::version;

/// Errors, with the sentence of the system's loader, unless `libtorch_cpu.so` of `libtorch` loads into a process of this
/// machine.
///
/// The process is this program, started once more with the library preloaded: nothing else needs to be installed for
/// that, the C library is the one that Tandem's own programs use, and it cannot take this process down. All symbols are
/// resolved, and LD_LIBRARY_PATH is not there to help.
pub fn check(libtorch: &Path) -> Result<()> {
    let libraries = version::libraries(libtorch)
        .with_context(|| format!("{} lacks lib/libtorch_cpu.so", libtorch.display()))?;
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let output = Command::new(&program)
        .arg("--help")
        .current_dir(&libraries)
        // Relative, because the loader splits the value at spaces and colons, which the path may have.
        .env("LD_PRELOAD", "./libtorch_cpu.so")
        .env("LD_BIND_NOW", "1")
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .output()
        .context("cannot start the process that tries libtorch")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    // A missing dependency or symbol ends the process; a file that is no library is only mentioned.
    if !output.status.success() || complaint.contains("cannot be preloaded") {
        let sentence = complaint.replace(&format!("{}: ", program.display()), "");
        bail!(
            "the libtorch in {} does not load on this machine ({} {}, {}): {}",
            libtorch.display(),
            std::env::consts::OS,
            std::env::consts::ARCH,
            output.status,
            sentence.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// Compiles C to a library, in a folder whose name the loader would split.
    fn library(directory: &Path, name: &str, source: &str, linked: &[PathBuf]) -> PathBuf {
        let folder = directory.join("a libtorch: of mine").join("lib");
        fs::create_dir_all(&folder).expect("create");
        let code = directory.join("code.c");
        fs::write(&code, source).expect("write");
        let path = folder.join(name);
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"])
            .arg(&path)
            .arg(&code)
            .args(linked)
            .arg("-Wl,-rpath,$ORIGIN")
            .current_dir(&folder)
            .status()
            .expect("run the compiler");
        assert!(status.success(), "the compiler made no library");
        path
    }

    fn complaint(directory: &Path) -> String {
        let error = check(&directory.join("a libtorch: of mine")).expect_err("does not load");
        assert!(error.to_string().contains("does not load"), "{error}");
        error.to_string()
    }

    #[test]
    fn a_library_that_loads_is_accepted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        library(directory.path(), "libtorch_cpu.so", "int x;", &[]);
        check(&directory.path().join("a libtorch: of mine")).expect("it loads");
    }

    #[test]
    fn what_does_not_load_is_reported_with_the_sentence_of_the_loader() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = directory.path();
        library(at, "libneeded.so", "int y;", &[]);
        let needed = PathBuf::from("libneeded.so");
        let cpu = library(at, "libtorch_cpu.so", "int x;", &[needed]);
        check(&at.join("a libtorch: of mine")).expect("it loads with what it needs");

        fs::remove_file(cpu.with_file_name("libneeded.so")).expect("remove");
        let text = complaint(at);
        assert!(
            text.contains("libneeded.so: cannot open shared object file"),
            "{text}"
        );

        library(
            at,
            "libtorch_cpu.so",
            "int missing(void); int x(void) { return missing(); }",
            &[],
        );
        let text = complaint(at);
        assert!(text.contains("undefined symbol: missing"), "{text}");

        fs::write(&cpu, "not a library, but as long as the header of one is").expect("write");
        let text = complaint(at);
        assert!(
            text.contains("libtorch_cpu.so") && text.contains("cannot be preloaded"),
            "{text}"
        );
    }
}
