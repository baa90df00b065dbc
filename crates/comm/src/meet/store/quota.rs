//! How much of rank 0's memory a rank may use.

/// Keys that a rank may set. A group takes about five.
const MAX_KEYS: usize = 1 << 14;

/// Bytes of all keys and values of a rank.
const MAX_BYTES: usize = 4 << 20;

/// Keys that a rank may wait for at the same time. Each of its threads that creates a group waits for one.
const MAX_WAITING: usize = 1 << 10;

/// What one rank uses.
#[derive(Debug, Default)]
pub(super) struct Quota {
    keys: usize,
    bytes: usize,
    waiting: usize,
}

impl Quota {
    /// Counts a key with its value. The error says what there is too much of.
    pub(super) fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.keys += 1;
        self.bytes += key.len() + value.len();
        if self.keys > MAX_KEYS {
            return Err(format!("it has set more than {MAX_KEYS} keys"));
        }
        if self.bytes > MAX_BYTES {
            return Err(format!(
                "its keys and values take more than {MAX_BYTES} bytes"
            ));
        }
        Ok(())
    }

    /// Counts a key that is waited for. The error says what there is too much of.
    pub(super) fn wait(&mut self) -> Result<(), String> {
        self.waiting += 1;
        if self.waiting > MAX_WAITING {
            return Err(format!("it waits for more than {MAX_WAITING} keys"));
        }
        Ok(())
    }

    /// A key that was waited for has come.
    pub(super) fn answered(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_excess_is_noticed_and_what_groups_need_is_not() {
        let mut modest = Quota::default();
        for key in 0..5000 {
            modest
                .set(&format!("group/dp/{key}"), b"10.0.0.1:4711")
                .unwrap();
            modest.wait().unwrap();
            modest.answered();
        }
        let mut keys = Quota::default();
        let refused = (0..=MAX_KEYS).find_map(|_| keys.set("k", b"").err());
        assert!(refused.unwrap().contains("keys"));
        let mut bytes = Quota::default();
        let value = vec![0; 1 << 16];
        let refused = (0..=MAX_BYTES >> 16).find_map(|_| bytes.set("k", &value).err());
        assert!(refused.unwrap().contains("bytes"));
        let mut waiting = Quota::default();
        let refused = (0..=MAX_WAITING).find_map(|_| waiting.wait().err());
        assert!(refused.unwrap().contains("waits"));
    }
}
