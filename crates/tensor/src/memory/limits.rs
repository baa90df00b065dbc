//! Limits below the machine's memory: those of control groups, and of address space.
//!
//! A process is in one group of version 2, and in one of the memory controller where that is still of version 1. Every group
//! above it limits it too. `/proc/self/cgroup` names the group from the root of the hierarchy, or of a name space; where the
//! hierarchy is mounted, and from which of its groups on, is in `/proc/self/mountinfo` (man 7 cgroups, man 5 proc).

use std::path::{Component, Path, PathBuf};

/// Names of a version's files.
struct Version {
    limit: &'static str,
    used: &'static str,
    /// Of `memory.stat`: files in the page cache, which count as used and are given up under pressure.
    cached: [&'static str; 2],
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_active_file", "total_inactive_file"],
};

const V2: Version = Version {
    limit: "memory.max",
    used: "memory.current",
    cached: ["active_file", "inactive_file"],
};

/// The least that any group of this process leaves of its limit; `None` without a limit.
pub(super) fn control_groups_left() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    smallest(&read, left_of)
}

/// The smallest limit of any group of this process, whatever of it is in use; `None` without a limit.
pub(super) fn control_groups_allow() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    smallest(&read, limit_of)
}

/// The limit of address space, in bytes; `None` without one.
pub(super) fn address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    address_space_in(&limits)
}

fn address_space_in(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    // The soft limit, which is the one that holds, comes first; `unlimited` is no number.
    line.split_whitespace().next()?.parse().ok()
}

/// The text of a file, where there is one.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The smallest number that `of_folder` finds of any group of this process.
fn smallest(
    read: Read<'_>,
    of_folder: fn(&Path, &Version, Read<'_>) -> Option<u64>,
) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        let version = if number == "0" && controllers.is_empty() {
            &V2
        } else if controllers.split(',').any(|name| name == "memory") {
            &V1
        } else {
            return None;
        };
        let (root, place) = mounts.lines().find_map(|line| mount(line, version))?;
        group_and_above(&root, &place, group)
            .iter()
            .filter_map(|folder| of_folder(folder, version, read))
            .min()
    };
    groups.lines().filter_map(of_line).min()
}

/// Which group is mounted, and where, when the line is that of the version's hierarchy.
fn mount(line: &str, version: &Version) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    let mut fields = after.split(' ');
    let kind = fields.next()?;
    let options = fields.nth(1)?;
    let is_it = if version.limit == V2.limit {
        kind == "cgroup2"
    } else {
        kind == "cgroup" && options.split(',').any(|name| name == "memory")
    };
    is_it.then(|| (unescaped(root), unescaped(place)))
}

/// Blanks and backslashes are octal numbers in this file.
fn unescaped(path: &str) -> PathBuf {
    let text = path
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    PathBuf::from(text)
}

/// The folders of the group and of those above it, as far as they can be seen.
fn group_and_above(root: &Path, place: &Path, group: &str) -> Vec<PathBuf> {
    // A container often sees its own group as the root of what is mounted, and its name from outside.
    let inner = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    // Nobody can be trusted to have named a group below the mount.
    let inner: PathBuf = inner
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let mut folders = vec![place.to_owned()];
    let mut folder = place.to_owned();
    for part in inner.components() {
        folder.push(part);
        folders.push(folder.clone());
    }
    folders
}

/// `max` is no number; version 1 has one for it that is larger than any machine.
fn limit_of(folder: &Path, version: &Version, read: Read<'_>) -> Option<u64> {
    read(&folder.join(version.limit))?.trim().parse().ok()
}

fn left_of(folder: &Path, version: &Version, read: Read<'_>) -> Option<u64> {
    let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
    let (limit, used) = (limit_of(folder, version, read)?, number(version.used)?);
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let cached = version.cached.iter().filter_map(|name| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    });
    let cached = cached.fold(0, u64::saturating_add);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const MOUNTS: &str = "\
        24 1 8:1 / / rw - ext4 /dev/sda rw\n\
        30 24 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
        33 24 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 24 0:31 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n";

    /// What a machine with these files leaves.
    fn left_with(files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<PathBuf, &str> = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), *text))
            .collect();
        smallest(
            &|path| files.get(path).map(|text| (*text).to_owned()),
            left_of,
        )
    }

    #[test]
    fn the_memory_group_of_version_1_counts_with_all_above_it() {
        let job = "/sys/fs/cgroup/memory/slurm/job_7";
        let [limit, used, stat] = [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "memory.stat",
        ]
        .map(|name| format!("{job}/{name}"));
        let above = "/sys/fs/cgroup/memory/slurm";
        let [above_limit, above_used] = ["memory.limit_in_bytes", "memory.usage_in_bytes"]
            .map(|name| format!("{above}/{name}"));
        let groups = "5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n0::/user.slice\n";
        let mut files = vec![
            ("/proc/self/cgroup", groups),
            ("/proc/self/mountinfo", MOUNTS),
            (&limit, "100000000\n"),
            (&used, "30000000\n"),
            (
                &stat,
                "cache 9\ninactive_file 1\ntotal_inactive_file 5000000\ntotal_active_file 1000000\n",
            ),
        ];
        assert_eq!(left_with(&files), Some(76_000_000));
        // The group above has less left; that of the mount itself has no limit.
        files.extend([
            (above_limit.as_str(), "80000000"),
            (above_used.as_str(), "79000000"),
        ]);
        files.extend([
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712",
            ),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "500000000"),
        ]);
        assert_eq!(left_with(&files), Some(1_000_000));
    }

    #[test]
    fn nested_groups_of_version_2_count() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let inner = "/sys/fs/cgroup/user.slice/job.scope";
        let [max, current] = ["memory.max", "memory.current"].map(|name| format!("{inner}/{name}"));
        let mut files = vec![
            ("/proc/self/cgroup", "0::/user.slice/job.scope\n"),
            ("/proc/self/mountinfo", mounts),
            (&max, "1000\n"),
            (&current, "400\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("/sys/fs/cgroup/user.slice/memory.current", "900\n"),
        ];
        assert_eq!(left_with(&files), Some(600));
        files[2].1 = "max\n";
        assert_eq!(left_with(&files), None);
        files[4].1 = "700\n";
        assert_eq!(left_with(&files), Some(0), "more is used than may be");
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let mounts = "35 24 0:31 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for group in ["/docker/ab", "/", "/../../other", "/docker/ab/inner"] {
            let groups = format!("4:memory:{group}\n");
            let files = [
                ("/proc/self/cgroup", groups.as_str()),
                ("/proc/self/mountinfo", mounts),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000"),
                ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "10"),
            ];
            assert_eq!(left_with(&files), Some(990), "{group}");
        }
    }

    #[test]
    fn the_soft_limit_of_address_space_is_read() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max cpu time              unlimited            unlimited            seconds   \n\
                     Max address space         1073741824           unlimited            bytes     \n";
        assert_eq!(address_space_in(table), Some(1 << 30));
        assert_eq!(
            address_space_in(&table.replace("1073741824", "unlimited")),
            None
        );
        assert_eq!(address_space_in(""), None);
    }
}
