//! What ranks of a test tell each other beside their groups: that something has happened, however long it took.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Set in the environment of a rank: the folder of this start's signs.
pub(super) const SIGNS: &str = "TANDEM_TEST_SIGNS";

/// A rank that has failed leaves no sign; its test shall not take longer than this to end.
const PATIENCE: Duration = Duration::from_secs(300);

fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os(SIGNS).expect("a rank of a test");
    PathBuf::from(folder).join(name)
}

/// Tells all who wait for it that this has happened.
pub fn leave_sign(name: &str) {
    std::fs::write(path(name), "").expect("the folder of signs is there");
}

/// Returns when some rank has left this sign.
pub fn await_sign(name: &str) {
    let (path, begin) = (path(name), Instant::now());
    while !path.exists() {
        assert!(begin.elapsed() < PATIENCE, "nobody says: {name}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that the rank `own` is at this point, and returns when all of `ranks` are.
pub fn meet(name: &str, own: usize, ranks: impl IntoIterator<Item = usize>) {
    leave_sign(&format!("{name}-{own}"));
    for rank in ranks {
        await_sign(&format!("{name}-{rank}"));
    }
}
