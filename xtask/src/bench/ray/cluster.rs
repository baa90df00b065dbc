//! A Ray of one node for the time of a benchmark.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::setup::Libtorch;

/// How long Ray may take to start.
const START: Duration = Duration::from_secs(120);
/// How long Ray may take to end before it is killed.
const END: Duration = Duration::from_secs(20);

/// The running cluster. It ends with this value; other Ray clusters of the machine are left alone (`ray stop` would end
/// them too).
pub struct Cluster {
    head: Child,
    port: u16,
}

impl Cluster {
    /// Starts Ray of the Python in `environment`, with this checkout's package. Its output goes to a file in `folder`.
    pub fn start(
        environment: &Path,
        package: &Path,
        libtorch: &Libtorch,
        folder: &Path,
    ) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::File::create(folder.join("ray.log"))?;
        let mut head = Command::new(environment.join("bin/ray"));
        // Its workers inherit this.
        libtorch.give_to(&mut head);
        let head = head
            .args(["start", "--head", "--block", "--disable-usage-stats"])
            .args(["--num-cpus=2", "--include-dashboard=false"])
            .args(["--node-ip-address=127.0.0.1", &format!("--port={port}")])
            .env("PYTHONPATH", package)
            .env("RAY_USAGE_STATS_ENABLED", "0")
            // Otherwise it would ask for a token on machines that have one.
            .env("RAY_AUTH_MODE", "disabled")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start ray")?;
        let mut cluster = Self { head, port };
        let start = Instant::now();
        let ready = || {
            std::fs::read_to_string(folder.join("ray.log"))
                .is_ok_and(|text| text.contains("Ray runtime started"))
        };
        while !ready() {
            if cluster.head.try_wait()?.is_some() || start.elapsed() > START {
                bail!(
                    "Ray did not start; see {}",
                    folder.join("ray.log").display()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(cluster)
    }

    /// What `--ray_address` takes.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGTERM, on which `ray start --block` ends what it has started.
        let _ = Command::new("kill")
            .arg(self.head.id().to_string())
            .status();
        let start = Instant::now();
        while matches!(self.head.try_wait(), Ok(None)) {
            if start.elapsed() > END {
                let _ = self.head.kill();
                let _ = self.head.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
