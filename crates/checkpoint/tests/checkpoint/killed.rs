//! A process that saves without pause and is killed, for real, at random moments.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{Retention, RunDir, Store};
use tempfile::TempDir;

use crate::sample::{Mesh, read_latest, save_and_register};

/// Tells the process that saves where to do it.
const FOLDER_VARIABLE: &str = "TANDEM_TEST_SAVES_INTO";

const MESH: Mesh = Mesh { tp: 2, dp: 2 };

fn retention() -> Retention {
    Retention {
        num_to_keep: Some(2),
        score: None,
    }
}

/// What the process to be killed does. Each save continues where the newest checkpoint stands, as a run does.
fn save_on(folder: &Path, saves: u64) {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder));
    let mut run = RunDir::open(store.clone(), retention()).expect("opens");
    run.clean().expect("cleans");
    let newest = read_latest(&store)
        .expect("the newest checkpoint is whole")
        .unwrap_or(0);
    for number in newest + 1..=newest + saves {
        save_and_register(&mut run, number, MESH).expect("saves");
    }
}

#[test]
fn saving_goes_on_and_on() {
    match env::var_os(FOLDER_VARIABLE) {
        Some(folder) => save_on(Path::new(&folder), u64::MAX / 2),
        None => {
            let folder = TempDir::new().unwrap();
            save_on(folder.path(), 3);
            save_on(folder.path(), 2);
            let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path()));
            assert_eq!(read_latest(&store).unwrap(), Some(5));
        }
    }
}

#[test]
fn killed_at_random_moments() {
    let seed = match env::var("TANDEM_TEST_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_micros() as u64,
    };
    println!("TANDEM_TEST_SEED={seed} repeats this");
    let mut random = seed;
    let folder = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.path()));
    let mut newest = 0;
    for life in 0..12 {
        // Knuth's linear congruential generator is random enough for a moment.
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let moment = Duration::from_micros((random >> 33) % 200_000);
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed::saving_goes_on_and_on"])
            .env(FOLDER_VARIABLE, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // However slow the machine, every third life gets as far as a save; the others may end before.
        if life % 3 == 0 {
            let deadline = Instant::now() + Duration::from_secs(120);
            while newest_commit(&store) <= newest {
                assert!(Instant::now() < deadline, "life {life} saves nothing");
                sleep(Duration::from_millis(2));
            }
        }
        sleep(moment);
        let ended = process.try_wait().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(ended.is_none(), "life {life} ended by itself: {ended:?}");
        let now = read_latest(&store).unwrap().unwrap_or(0);
        assert!(
            now >= newest,
            "life {life}: the newest was {newest} and is {now}"
        );
        newest = now;
    }
    println!("{newest} saves in 12 lives");
    let mut run = RunDir::open(store.clone(), retention()).unwrap();
    run.clean().unwrap();
    assert!(run.torn().is_empty() && run.checkpoints().len() <= 3);
    save_and_register(&mut run, newest + 1, MESH).unwrap();
    assert_eq!(read_latest(&store).unwrap(), Some(newest + 1));
    assert!(newest >= 4);
}

/// Steps of the newest checkpoint, while another process goes on changing the folder.
fn newest_commit(store: &Arc<dyn Store>) -> u64 {
    let run = RunDir::open(store.clone(), retention());
    run.ok()
        .and_then(|run| Some(run.latest()?.global_step))
        .unwrap_or(0)
}
