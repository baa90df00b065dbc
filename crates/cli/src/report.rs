//! `tandem report`: one page about one run or several, to open in a browser or to send to somebody.

mod columns;
mod page;
mod run_folder;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use tandem_launch::exit_code;
use tandem_launch::say;
use tandem_run::failure::{Failure, Outcome};

use run_folder::RunFolder;

/// Make a page of curves, saves, failures and settings of one run or several. It is one file, needs no network, and can be
/// made while a run goes.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ReportArgs {
    /// Folders of runs, to lay over each other; of a run in object storage, its folder in --local_path.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,

    /// The page to write.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,

    /// Open it in the browser.
    #[arg(long)]
    pub open: bool,
}

/// Opens a file with the program that the desktop has for it.
const OPENER: &str = "xdg-open";

/// Writes the page. Returns the exit code.
pub fn run(args: &ReportArgs) -> Outcome<i32> {
    let runs = args
        .runs
        .iter()
        .map(|folder| RunFolder::read(folder))
        .collect::<Outcome<Vec<_>>>()?;
    let made = SystemTime::now().duration_since(UNIX_EPOCH);
    let runs = named_apart(runs);
    let problems: Vec<(String, String)> = runs
        .iter()
        .flat_map(|run| run.problems.iter().map(|it| (run.name.clone(), it.clone())))
        .collect();
    let experts: Vec<String> = runs
        .iter()
        .filter_map(|run| {
            Some(format!(
                "{}: {}",
                run.name,
                run.steps.experts.as_ref()?.line()
            ))
        })
        .collect();
    let page = page::page(&page::Report {
        made: made.unwrap_or_default().as_secs_f64(),
        runs,
    })
    .map_err(Failure::other)?;
    write(&args.output, &page)?;
    say!("{}", args.output.display())?;
    for line in experts {
        say!("  {line}")?;
    }
    for (name, problem) in problems {
        say!("  {name}: {problem}")?;
    }
    if args.open {
        open(&args.output)?;
    }
    Ok(exit_code::OK)
}

/// Gives runs of the same name the names of the folders that they are in as well.
fn named_apart(mut runs: Vec<RunFolder>) -> Vec<RunFolder> {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in &mut runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name.clone_from(&run.path);
        }
    }
    runs
}

/// Replaces the page at once, so that nobody who looks at it sees half of one.
fn write(path: &Path, page: &str) -> Outcome<()> {
    let cannot =
        |error: std::io::Error| Failure::other(format!("cannot write {}: {error}", path.display()));
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Failure::usage(format!(
            "--output {} is a folder; give the name of the page, such as {}",
            path.display(),
            path.join("report.html").display()
        ))),
        // What is no file (a pipe, /dev/stdout) is written to, and not replaced.
        Ok(found) if !found.is_file() => std::fs::write(path, page).map_err(cannot),
        _ => tandem_files::write_whole(path, page.as_bytes()).map_err(cannot),
    }
}

fn open(path: &Path) -> Outcome<()> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let status = Command::new(OPENER)
        .arg(&path)
        .stdin(Stdio::null())
        .status();
    let problem = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Failure::other(format!(
        "--open: {OPENER} cannot open {} ({problem}); the page is there, open it yourself",
        path.display()
    )))
}
