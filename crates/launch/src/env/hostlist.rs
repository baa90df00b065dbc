//! Slurm's compact host lists, such as `n[01-03,7],m1`.

/// Most hosts that a list may name. A mistyped range such as `n[1-9999999999]` must not fill the memory.
const MAX_HOSTS: usize = 1 << 20;

/// Why a host list cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} in the host list {list:?}")]
pub struct HostlistError {
    /// The whole list.
    pub list: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The hosts that `list` names, in its order.
///
/// Brackets hold numbers and ranges, whose width (leading zeros) is kept: `n[08-10]` is n08, n09, n10. One name may
/// have several brackets; the rightmost varies fastest. The format is that of `scontrol show hostnames`.
///
/// # Errors
/// [`HostlistError`] for unbalanced brackets, empty names, bad ranges, or more than about a million hosts.
pub fn expand_hostlist(list: &str) -> Result<Vec<String>, HostlistError> {
    let error = |problem: String| HostlistError {
        list: list.to_owned(),
        problem,
    };
    let mut hosts = Vec::new();
    for name in split_outside_brackets(list).map_err(error)? {
        let expanded = expand_name(name).map_err(error)?;
        hosts.extend(expanded);
        if hosts.len() > MAX_HOSTS {
            return Err(error(format!("more than {MAX_HOSTS} hosts")));
        }
    }
    Ok(hosts)
}

fn split_outside_brackets(list: &str) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    let mut inside = false;
    let mut start = 0;
    for (at, character) in list.char_indices() {
        match character {
            '[' if inside => return Err("a bracket inside brackets".to_owned()),
            '[' => inside = true,
            ']' if !inside => return Err("a closing bracket without an opening one".to_owned()),
            ']' => inside = false,
            ',' if !inside => {
                names.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("an opening bracket without a closing one".to_owned());
    }
    names.push(&list[start..]);
    if names.iter().any(|name| name.trim().is_empty()) {
        return Err("an empty host name".to_owned());
    }
    Ok(names)
}

fn expand_name(name: &str) -> Result<Vec<String>, String> {
    let mut hosts = vec![String::new()];
    let mut rest = name.trim();
    while let Some(open) = rest.find('[') {
        let close = rest.find(']').unwrap_or(rest.len());
        let numbers = expand_numbers(&rest[open + 1..close])?;
        let prefix = &rest[..open];
        if hosts.len().saturating_mul(numbers.len()) > MAX_HOSTS {
            return Err(format!("more than {MAX_HOSTS} hosts"));
        }
        hosts = hosts
            .iter()
            .flat_map(|host| numbers.iter().map(move |n| format!("{host}{prefix}{n}")))
            .collect();
        rest = &rest[close + 1..];
    }
    for host in &mut hosts {
        host.push_str(rest);
    }
    Ok(hosts)
}

fn expand_numbers(bracket: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text:?} where a number belongs"));
        }
        text.parse::<u64>()
            .map_err(|_| format!("the number {text} is too large"))
    };
    let mut numbers = Vec::new();
    for part in bracket.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (number(first)?, number(last)?);
        if low > high {
            return Err(format!("the range {part} runs backwards"));
        }
        if high - low >= MAX_HOSTS as u64 {
            return Err(format!("more than {MAX_HOSTS} hosts"));
        }
        let width = first.len();
        numbers.extend((low..=high).map(|n| format!("{n:0width$}")));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::expand_hostlist;
    use proptest::prelude::*;

    #[test]
    fn lists_expand_as_scontrol_show_hostnames_does() {
        let cases = [
            ("m1", vec!["m1"]),
            ("m1,m2", vec!["m1", "m2"]),
            ("n[01-03,7],m1", vec!["n01", "n02", "n03", "n7", "m1"]),
            ("n[8-11]", vec!["n8", "n9", "n10", "n11"]),
            ("n[098-101]", vec!["n098", "n099", "n100", "n101"]),
            (
                "r[1-2]c[0-1]-ib",
                vec!["r1c0-ib", "r1c1-ib", "r2c0-ib", "r2c1-ib"],
            ),
            ("gpu-a.example.org", vec!["gpu-a.example.org"]),
        ];
        for (list, hosts) in cases {
            assert_eq!(expand_hostlist(list).unwrap(), hosts, "{list}");
        }
    }

    #[test]
    fn broken_lists_are_errors_that_quote_the_list() {
        for list in [
            "",
            ",",
            "n1,",
            "n[1-3",
            "n1-3]",
            "n[[1]]",
            "n[]",
            "n[a]",
            "n[3-1]",
            "n[1-2-3]",
            "n[-1]",
            "n[1-99999999999999999999]",
            "n[1-99999999]",
            "a[1-5000]b[1-5000]",
        ] {
            let error = expand_hostlist(list).expect_err(list);
            assert!(error.to_string().contains(&format!("{list:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(text in "[a-z0-9,\\[\\]-]{0,24}") {
            if let Ok(hosts) = expand_hostlist(&text) {
                prop_assert!(hosts.iter().all(|host| !host.is_empty() && !host.contains(['[', ']', ','])));
            }
        }
    }
}
