//! Several hosts on this machine, made of network namespaces: each has a link to a bridge between them. Only root may.

use std::process::{Command, Output, Stdio};

/// The hosts of a test, gone when it is over.
pub struct Hosts {
    names: Vec<String>,
    /// Where the bridge is.
    hub: String,
    /// A file for each host, with what its kernel would say it is.
    identities: tempfile::TempDir,
}

fn ip(line: &str) -> std::io::Result<Output> {
    Command::new("ip").args(line.split(' ')).output()
}

impl Hosts {
    /// The error is what this machine does not permit.
    pub fn make(test: &str, count: usize) -> Result<Self, String> {
        remove_orphans();
        let id = std::process::id();
        let name = |what: String| format!("tandem-{id}-{test}-{what}");
        let hosts = Self {
            names: (0..count).map(|host| name(host.to_string())).collect(),
            hub: name("hub".to_owned()),
            identities: tempfile::tempdir().unwrap(),
        };
        let hub = &hosts.hub;
        let mut lines = vec![
            format!("netns add {hub}"),
            format!("-n {hub} link add bridge0 type bridge"),
            format!("-n {hub} link set bridge0 up"),
        ];
        for (host, name) in hosts.names.iter().enumerate() {
            std::fs::write(hosts.identity(host), format!("host {name}\n")).unwrap();
            lines.extend([
                format!("netns add {name}"),
                format!("link add link0 netns {name} type veth peer name port{host} netns {hub}"),
                format!("-n {hub} link set port{host} master bridge0 up"),
                format!("-n {name} addr add {}/24 dev link0", Self::address(host)),
                format!("-n {name} link set lo up"),
                format!("-n {name} link set link0 up"),
            ]);
        }
        for line in lines {
            match ip(&line) {
                Ok(output) if output.status.success() => {}
                refused => return Err(format!("no namespaces here: ip {line}: {refused:?}")),
            }
        }
        Ok(hosts)
    }

    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// `command` on a host. The process that this starts becomes that of the command.
    pub fn wrap(&self, host: usize, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped
            .args(["netns", "exec", &self.names[host], "sh", "-c"])
            .arg("mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"")
            .arg(self.identity(host))
            .arg(command.get_program())
            .args(command.get_args());
        wrapped.stdout(Stdio::null());
        wrapped
    }

    /// Cuts or heals the link of a host.
    pub fn link(&self, host: usize, state: &str) {
        let output = ip(&format!("-n {} link set link0 {state}", self.names[host])).unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn identity(&self, host: usize) -> std::path::PathBuf {
        self.identities.path().join(&self.names[host])
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.hub]) {
            // The links go with them. One that was never made cannot be removed.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Those of tests that were killed before they could remove them.
fn remove_orphans() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("tandem-");
        let owner = owner.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
