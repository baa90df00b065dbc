//! Saving and loading against plain writing and reading of the same bytes, and how long a save holds up training.
//!
//! `cargo xtask bench checkpoint [MEGABYTES] [FOLDER]`. Every number is the best of five rounds; loads come out of the page
//! cache, as they do right after a crash.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{
    BackgroundWriter, NewCheckpoint, Piece, ReadRequest, Reader, Role, ShardReport, Snapshot,
    Store, TensorSpec, TrainState, commit, write_shard,
};
use tandem_mesh::{ShardSlice, partition};

/// A matrix of Qwen2-0.5B's feed-forward layers.
const SHAPE: [usize; 2] = [4864, 896];
const ROUNDS: usize = 5;
const WINDOW: usize = 4 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let megabytes: usize = arguments.first().map_or(Ok(512), |text| text.parse())?;
    let parent = arguments.get(1).map_or_else(env::temp_dir, PathBuf::from);
    let folder = parent.join(format!("tandem-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = measure(&folder, megabytes);
    fs::remove_dir_all(&folder)?;
    result
}

fn measure(folder: &Path, megabytes: usize) -> Result<()> {
    let elements = SHAPE[0] * SHAPE[1];
    let count = (megabytes * 1_000_000).div_ceil(3 * 4 * elements).max(1);
    let names: Vec<String> = (0..count)
        .map(|i| format!("model.layers.{i}.mlp.up_proj.weight"))
        .collect();
    let data: Vec<f32> = (0..elements).map(|i| (i as f32).sin()).collect();
    let roles = [Role::Param, Role::ExpAvg, Role::ExpAvgSq];
    let whole = ShardSlice::whole(&SHAPE);
    let pieces: Vec<Piece<'_>> = names
        .iter()
        .flat_map(|tensor| {
            roles.iter().map(|role| Piece {
                tensor,
                role: role.clone(),
                slice: whole.clone(),
                data: &data,
            })
        })
        .collect();
    let bytes = pieces.len() * elements * 4;
    println!(
        "{} MB in {} pieces, one rank, {}",
        bytes / 1_000_000,
        pieces.len(),
        folder.display()
    );
    let show = |what: &str, seconds: f64| {
        println!(
            "{what:<44} {seconds:>8.3} s {:>8.0} MB/s",
            bytes as f64 / 1e6 / seconds
        );
    };

    let plain = folder.join("plain");
    show(
        "write: plain, with fsync",
        best(|| plain_write(&plain, &pieces))?,
    );
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(folder.join("run")));
    let mut report: Option<ShardReport> = None;
    let save = || {
        report = Some(write_shard(store.as_ref(), "c", 0, &pieces)?);
        Ok(())
    };
    show("write: shard, with hashes and fsync", best(save)?);
    let hash = || {
        for piece in &pieces {
            std::hint::black_box(tandem_checkpoint::Digest::of(bytemuck::cast_slice(
                piece.data,
            )));
        }
        Ok(())
    };
    show("  of which one pass of hashing", best(hash)?);

    let specs: Vec<TensorSpec> = names
        .iter()
        .map(|name| TensorSpec {
            name: name.clone(),
            shape: SHAPE.to_vec(),
            roles: roles.to_vec(),
        })
        .collect();
    let new = NewCheckpoint::in_folder("c");
    let reports = report.into_iter().collect();
    commit(store.as_ref(), &new, &specs, reports, TrainState::default())?;

    show("read: plain", best(|| plain_read(&plain, bytes))?);
    let reader = Reader::open(store.clone(), "c")?;
    show(
        "read: same slices, verified",
        best(|| load(&reader, &names, &roles, &whole))?,
    );
    let rows = ShardSlice::narrow(&SHAPE, 0, partition(SHAPE[0], 2, 1));
    show(
        "read: half of the rows (MB/s of the whole)",
        best(|| load(&reader, &names, &roles, &rows))?,
    );
    let columns = ShardSlice::narrow(&SHAPE, 1, partition(SHAPE[1], 2, 1));
    show(
        "read: half of the columns (MB/s of the whole)",
        best(|| load(&reader, &names, &roles, &columns))?,
    );

    blocking_time(&store, &pieces, &show)
}

/// What training waits for: without a background writer the whole save, with one the copy.
fn blocking_time(
    store: &Arc<dyn Store>,
    pieces: &[Piece<'_>],
    show: &dyn Fn(&str, f64),
) -> Result<()> {
    let mut writer = BackgroundWriter::new(store.clone());
    let own = |piece: &Piece<'_>| {
        let (tensor, data) = (piece.tensor.to_owned(), piece.data.to_vec());
        (tensor, piece.role.clone(), piece.slice.clone(), data)
    };
    let state = Arc::new(pieces.iter().map(own).collect::<Vec<_>>());
    for save in ["first", "later"] {
        let start = Instant::now();
        let state = Arc::clone(&state);
        let copying = writer.start_copying("background", 0, move |snapshot: &mut Snapshot| {
            for (tensor, role, slice, data) in state.iter() {
                snapshot.push(tensor, role.clone(), slice.clone(), |out| {
                    out.copy_from_slice(data);
                });
            }
        })?;
        copying.wait();
        show(
            &format!("blocked by a background save: {save}"),
            start.elapsed().as_secs_f64(),
        );
        let start = Instant::now();
        writer.wait().ok_or("a save was started")??;
        show(
            &format!("  written behind it: {save}"),
            start.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

fn load(reader: &Reader, names: &[String], roles: &[Role], slice: &ShardSlice) -> Result<()> {
    let mut out = vec![0.0; slice.numel() * names.len() * roles.len()];
    let mut buffers = out.chunks_mut(slice.numel());
    let mut requests = Vec::new();
    for tensor in names {
        for role in roles {
            let out = buffers.next().ok_or("a buffer for every slice")?;
            requests.push(ReadRequest {
                tensor,
                role: role.clone(),
                slice: slice.clone(),
                out,
            });
        }
    }
    Ok(reader.read_many(requests)?)
}

fn plain_write(path: &Path, pieces: &[Piece<'_>]) -> Result<()> {
    let mut file = File::create(path)?;
    for piece in pieces {
        for window in bytemuck::cast_slice::<f32, u8>(piece.data).chunks(WINDOW) {
            file.write_all(window)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

/// With as many threads as loading uses.
fn plain_read(path: &Path, bytes: usize) -> Result<()> {
    let file = File::open(path)?;
    let mut out = vec![0; bytes];
    let threads = std::thread::available_parallelism()?.get();
    let share = bytes.div_ceil(threads);
    let read = |(position, part): (usize, &mut [u8])| -> io::Result<()> {
        for (window, out) in part.chunks_mut(WINDOW).enumerate() {
            file.read_exact_at(out, (position * share + window * WINDOW) as u64)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let parts = out.chunks_mut(share).enumerate();
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or(Err(io::ErrorKind::Other.into())))
    })?;
    Ok(())
}

/// The least seconds that `work` takes: what other processes add is not ours.
fn best(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
