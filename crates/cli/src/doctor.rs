//! `tandem doctor`: what this machine offers and which libtorch is used, for people and for bug reports.

use std::fs;
use std::path::Path;

use clap::Args;
use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use tandem_launch::exit_code;
use tandem_launch::say;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_tensor::memory;
use tandem_tensor::torch::{self, Surroundings, Torch, TorchError, cuda};

use crate::flags::gpu::GpuFlags;

/// Show which libtorch is used and what this machine offers: what a bug report needs.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct DoctorArgs {
    /// As JSON, for programs.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub gpu: GpuFlags,
}

/// What was found, and what is wrong with it.
#[derive(Debug, Serialize)]
struct Report {
    sections: Vec<Section>,
    /// Sentences: what keeps training from running here.
    problems: Vec<String>,
}

/// Facts about one thing.
#[derive(Debug, Serialize)]
pub struct Section {
    pub name: &'static str,
    pub facts: Vec<Fact>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

impl Section {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            facts: Vec::new(),
        }
    }

    fn fact(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.facts.push(Fact {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// A fact that the system may not tell.
    fn maybe(self, name: &str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.fact(name, value),
            None => self.fact(name, "unknown"),
        }
    }
}

/// The facts, and sentences about what keeps training from running here.
pub fn sections(environment: &Environment) -> (Vec<Section>, Vec<String>) {
    let opened = torch::open(&Surroundings::read());
    let mut problems: Vec<String> = opened
        .as_ref()
        .err()
        .map(TorchError::to_string)
        .into_iter()
        .collect();
    let sections = vec![
        program(),
        libtorch(opened.as_ref()),
        devices(opened.ok(), &mut problems),
        processor(),
        memory_section(&mut problems),
        limits(),
        system(),
        variables(environment),
    ];
    (sections, problems)
}

/// Prints to standard output. Returns the exit code: 2 when training cannot run here.
pub fn run(args: &DoctorArgs, environment: &Environment) -> Outcome<i32> {
    let (sections, problems) = sections(environment);
    let code = match problems.as_slice() {
        [] => exit_code::OK,
        _ => exit_code::USAGE,
    };
    let report = Report { sections, problems };
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::other)?;
        say!("{text}")?;
    } else {
        say!("{}", text(&report).trim_end())?;
    }
    Ok(code)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.sections {
        text += &format!("{}\n", section.name);
        let width = section.facts.iter().map(|fact| fact.name.len()).max();
        for Fact { name, value } in &section.facts {
            text += &format!("  {name:<width$}  {value}\n", width = width.unwrap_or(0));
        }
    }
    for problem in &report.problems {
        text += &format!("problem: {problem}\n");
    }
    text
}

fn program() -> Section {
    let file = std::env::current_exe().map(|file| file.display().to_string());
    Section::new("program")
        .fact("version", env!("CARGO_PKG_VERSION"))
        .maybe("file", file.ok())
        .fact(
            "target",
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        )
        .fact("object storage", yes(cfg!(feature = "object-storage")))
}

fn libtorch(opened: Result<&&'static Torch, &TorchError>) -> Section {
    let section = Section::new("libtorch");
    let Ok(torch) = opened else {
        return section.fact("release", "none that can be used");
    };
    let tested = match torch.version().is_untested() {
        false => "yes",
        true => "no, it is newer",
    };
    let mut section = section
        .fact("release", torch.version().to_string())
        .fact("folder", torch.libraries().display().to_string())
        .fact("found through", torch.origin().to_string())
        .fact("tested with Tandem", tested)
        .fact("part for CUDA", yes(torch.has_cuda_part()));
    for passed_over in torch.passed_over() {
        section = section.fact("passed over", passed_over);
    }
    section
}

fn devices(torch: Option<&'static Torch>, problems: &mut Vec<String>) -> Section {
    let section = Section::new("CUDA devices");
    let Some(torch) = torch.filter(|torch| torch.has_cuda_part()) else {
        return section.fact("number", "0");
    };
    match cuda::device_count(torch) {
        Ok(count) => (0..count).fold(
            section.fact("number", count.to_string()),
            |section, device| {
                let memory = cuda::memory(device)
                    .map(|(free, total)| format!("{} GB free of {} GB", gb(free), gb(total)));
                section.maybe(&format!("device {device}"), memory)
            },
        ),
        Err(error) => {
            problems.push(error.to_string());
            section.fact("number", "unknown")
        }
    }
}

fn processor() -> Section {
    let cores = std::thread::available_parallelism().map(|cores| cores.to_string());
    Section::new("processor")
        .maybe("model", line_of("/proc/cpuinfo", "model name"))
        .maybe("cores for this process", cores.ok())
        .fact("instruction sets", instruction_sets())
}

fn instruction_sets() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        let amx = line_of("/proc/cpuinfo", "flags")
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "amx_bf16"));
        let sets = sets.into_iter().chain([("amx_bf16", amx)]);
        let found: Vec<&str> = sets.filter(|(_, has)| *has).map(|(name, _)| name).collect();
        found.join(" ")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        line_of("/proc/cpuinfo", "Features").unwrap_or_else(|| "unknown".to_owned())
    }
}

/// Ranks of one host exchange tensors through it; Docker gives 64 MB unless told otherwise.
const SMALL_SHM: u64 = 256 << 20;

fn memory_section(problems: &mut Vec<String>) -> Section {
    let amount = |bytes: u64| format!("{} GB", gb(bytes));
    let total = line_of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
        .map(|kib| amount(kib * 1024));
    let shm = statvfs("/dev/shm").ok();
    let free_shm = shm.as_ref().map(|shm| shm.f_bavail * shm.f_frsize);
    if let Some(free) = free_shm
        && free < SMALL_SHM
    {
        problems.push(format!(
            "/dev/shm has {} MB free: start the container with a larger one (docker run --shm-size 2g)",
            free >> 20
        ));
    }
    Section::new("memory")
        .maybe("total", total)
        .maybe("available", memory::available_bytes().map(amount))
        .maybe("limit of the control group", control_group_limit())
        .maybe(
            "/dev/shm",
            shm.map(|shm| amount(shm.f_blocks * shm.f_frsize)),
        )
        .maybe("/dev/shm free", free_shm.map(amount))
}

fn control_group_limit() -> Option<String> {
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let text = files
        .iter()
        .find_map(|file| fs::read_to_string(file).ok())?;
    Some(match text.trim().parse::<u64>() {
        // Version 1 says "none" with the largest multiple of a page.
        Ok(bytes) if bytes < 1 << 62 => format!("{} GB", gb(bytes)),
        _ => "none".to_owned(),
    })
}

fn limits() -> Section {
    let limit = |resource| {
        let limit = getrlimit(resource);
        let shown = |value: Option<u64>| value.map_or("unlimited".to_owned(), |v| v.to_string());
        format!(
            "{} (at most {})",
            shown(limit.current),
            shown(limit.maximum)
        )
    };
    Section::new("limits")
        .fact("open files", limit(Resource::Nofile))
        .fact("processes and threads", limit(Resource::Nproc))
        .fact("address space", limit(Resource::As))
        .fact("locked memory", limit(Resource::Memlock))
        .fact("stack", limit(Resource::Stack))
}

fn system() -> Section {
    let name = rustix::system::uname();
    Section::new("system")
        .maybe("distribution", line_of("/etc/os-release", "PRETTY_NAME"))
        .fact("kernel", name.release().to_string_lossy())
        .maybe("Python", python())
}

/// The first Python on the path, by its link's name.
fn python() -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path)
        .map(|folder| folder.join("python3"))
        .find(|program| program.exists())?;
    let target = program.canonicalize().unwrap_or(program);
    Some(target.display().to_string())
}

/// Variables that change what is loaded or how it runs. None of them is a secret.
const VARIABLES: [&str; 17] = [
    "TANDEM_LIBTORCH",
    "LIBTORCH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "RUST_LOG",
];

fn variables(environment: &Environment) -> Section {
    VARIABLES
        .iter()
        .filter_map(|name| Some((*name, environment.get(name)?)))
        .fold(Section::new("variables"), |section, (name, value)| {
            section.fact(name, value)
        })
}

/// The value of the first `name: value` or `name=value` line of a file.
fn line_of(file: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let value = line[name.len()..].trim_start_matches([' ', '\t', ':', '=']);
    Some(value.trim_matches('"').trim().to_owned())
}

fn gb(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_under_each_other_and_problems_at_the_end() {
        let report = Report {
            sections: vec![
                Section::new("thing")
                    .fact("a", "1")
                    .maybe("longer", None::<String>),
            ],
            problems: vec!["it is broken".to_owned()],
        };
        let expected = "thing\n  a       1\n  longer  unknown\nproblem: it is broken\n";
        assert_eq!(text(&report), expected);
    }

    #[test]
    fn lines_of_proc_and_of_settings_are_read() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let file = folder.path().join("facts");
        fs::write(&file, "other: 1\nmodel name\t: A CPU\nNAME=\"An OS\"\n").expect("write");
        assert_eq!(line_of(&file, "model name").as_deref(), Some("A CPU"));
        assert_eq!(line_of(&file, "NAME").as_deref(), Some("An OS"));
        assert_eq!(line_of(&file, "absent"), None);
    }
}
